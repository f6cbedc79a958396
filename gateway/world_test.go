package gateway

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/metric"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(); err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	os.Exit(code)
}

const (
	issuer   = "https://auth.test"
	audience = "parley"
	keyID    = "k1"
	// patience bounds every wait of a test; nothing waits for it when all is well.
	patience = 10 * time.Second
)

// backend is the service behind the gateway. The gateway does not read what it
// routes, so a test says what a method does.
type backend struct {
	messagingv1connect.UnimplementedMessagingServiceHandler
	send func(context.Context, *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error)
	// header is that of the last request to any method.
	header atomic.Pointer[http.Header]
}

func (b *backend) SendMessage(ctx context.Context, r *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
	if b.send != nil {
		return b.send(ctx, r)
	}
	return &messagingv1.SendMessageResponse{Seq: 7}, nil
}

func (b *backend) GetConversation(context.Context, *messagingv1.GetConversationRequest) (*messagingv1.GetConversationResponse, error) {
	return nil, rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND, "no such conversation")
}

// setup is what a test may change before its world is made.
type setup struct {
	cfg     Config
	h2c     bool
	conn    *nats.Conn
	clock   clock.Clock
	backend backend
	methods map[string]rpc.Method
	extra   map[string]http.Handler // services by name
	keys    token.KeySource
	meter   metric.MeterProvider
	redis   rueidis.Client
	log     *slog.Logger
}

type world struct {
	t           testing.TB
	gateway     *Gateway
	address     string // host:port
	key         token.SigningKey
	clock       clock.Clock
	conn        *nats.Conn
	publisher   *realtime.Publisher
	revocations *token.Revocations
	backend     *backend
	stop        context.CancelFunc // begins the drain
	stopped     chan struct{}      // closed when Run has returned
}

// newWorld runs a gateway in front of a service until the test ends.
func newWorld(t testing.TB, change ...func(*setup)) *world {
	t.Helper()
	cfg, err := Defaults()
	require.NoError(t, err)
	cfg.Socket.WheelTick = 5 * time.Millisecond
	cfg.Socket.DrainWindow = 0
	cfg.Socket.ResyncWindow = 0
	cfg.HTTP.CallTimeout = 5 * time.Second
	s := &setup{cfg: cfg, clock: clock.System(), extra: map[string]http.Handler{}}
	for _, do := range change {
		do(s)
	}
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	w := &world{
		t: t, key: token.SigningKey{ID: keyID, Private: private}, clock: s.clock,
		conn: s.conn, backend: &s.backend, stopped: make(chan struct{}),
	}
	if w.conn == nil {
		w.conn = testkit.NATS(t).Connect(t)
	}
	if s.keys == nil {
		s.keys = token.StaticKeys{keyID: private.Public().(ed25519.PublicKey)}
	}
	log := s.log
	if log == nil {
		log = testkit.Logger(t)
	}
	w.publisher = realtime.New(w.conn, nil, log)
	w.revocations = token.NewRevocations(s.clock, time.Hour)
	verifier := token.NewVerifier(s.keys, w.revocations, s.clock, issuer, audience)
	w.gateway, err = New(t.Context(), s.cfg, Deps{
		Dialer: w.services(s, verifier), NATS: w.conn, Verifier: verifier, Revocations: w.revocations,
		Clock: s.clock, Log: log, Methods: s.methods, Meter: s.meter, Redis: s.redis,
	})
	require.NoError(t, err)
	w.run()
	return w
}

// staticKeys verify the tokens of this world, for another gateway.
func (w *world) staticKeys() token.KeySource {
	return token.StaticKeys{keyID: w.key.Private.Public().(ed25519.PublicKey)}
}

// services starts what stands behind the gateway, in process or over HTTP/2.
func (w *world) services(s *setup, verifier *token.Verifier) rpc.Dialer {
	server := rpc.NewServer(rpc.Config{Service: "messaging", Log: testkit.Logger(w.t), Users: verifier})
	path, handler := messagingv1connect.NewMessagingServiceHandler(w.backend, server.Options()...)
	require.NoError(w.t, server.Handle(path, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		header := r.Header.Clone()
		w.backend.header.Store(&header)
		handler.ServeHTTP(rw, r)
	})))
	if !s.h2c {
		registry := rpc.NewInProcess()
		registry.Register("messaging", server.Handler())
		for name, extra := range s.extra {
			registry.Register(name, extra)
		}
		return registry
	}
	addresses := map[string]string{"messaging": w.serve(server.Handler())}
	for name, extra := range s.extra {
		addresses[name] = w.serve(extra)
	}
	dialer, err := rpc.Remote(addresses, rpc.RemoteConfig{Log: testkit.Logger(w.t)})
	require.NoError(w.t, err)
	w.t.Cleanup(dialer.Close)
	return dialer
}

// serve serves h2c until the test ends, and gives the URL.
func (w *world) serve(h http.Handler) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(w.t, err)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: h, Protocols: protocols, ReadHeaderTimeout: patience}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	w.t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return "http://" + listener.Addr().String()
}

func (w *world) run() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(w.t, err)
	w.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop = cancel
	failed := make(chan error, 1)
	go func() {
		defer close(w.stopped)
		failed <- w.gateway.Run(ctx, listener)
	}()
	w.t.Cleanup(func() {
		cancel()
		select {
		case <-w.stopped:
			require.NoError(w.t, <-failed)
		case <-time.After(3 * patience):
			require.Fail(w.t, "the gateway does not end")
		}
	})
}

func users(people ...person) []uuid.UUID {
	ids := make([]uuid.UUID, len(people))
	for i, p := range people {
		ids[i] = p.user
	}
	return ids
}

// person is somebody with a session.
type person struct{ user, session uuid.UUID }

func newPerson() person { return person{uuid.New(), uuid.New()} }

// token makes an access token that lives for that long; negative is expired.
func (w *world) token(p person, life time.Duration) string {
	w.t.Helper()
	now := w.clock.Now()
	issued := now
	if life < 0 {
		issued = now.Add(2 * life)
	}
	raw, err := token.SignAccess(w.key, token.Claims{
		UserID: p.user, SessionID: p.session, Role: identity.RoleUser, IssuedAt: issued, ExpiresAt: now.Add(life),
	}, issuer, audience)
	require.NoError(w.t, err)
	return raw
}

// client is one socket.
type client struct {
	t    testing.TB
	ws   *websocket.Conn
	json bool
}

func (w *world) dialer(subprotocols ...string) *websocket.Dialer {
	return &websocket.Dialer{HandshakeTimeout: patience, Subprotocols: subprotocols}
}

func (w *world) socketURL() string { return "ws://" + w.address + SocketPath }

// dial opens a socket that has not authenticated.
func (w *world) dial(subprotocol string) *client {
	w.t.Helper()
	ws, response, err := w.dialer(subprotocol).DialContext(w.t.Context(), w.socketURL(), nil)
	require.NoError(w.t, err)
	require.Equal(w.t, subprotocol, response.Header.Get("Sec-WebSocket-Protocol"))
	return w.wrap(ws)
}

func (w *world) wrap(ws *websocket.Conn) *client {
	require.NoError(w.t, ws.SetReadDeadline(time.Now().Add(patience)))
	w.t.Cleanup(func() { _ = ws.Close() })
	return &client{t: w.t, ws: ws, json: ws.Subprotocol() == SubprotocolJSON}
}

// connect opens a socket as a person and waits for the welcome.
func (w *world) connect(p person, subprotocol string) *client {
	w.t.Helper()
	c := w.dial(subprotocol)
	c.authenticate(1, w.token(p, time.Hour))
	require.Equal(w.t, p.user.String(), c.receive().GetWelcome().GetUserId())
	return c
}

func (c *client) authenticate(id uint32, raw string) {
	c.t.Helper()
	c.send(&realtimev1.ClientFrame{Id: id, Frame: &realtimev1.ClientFrame_Authenticate{
		Authenticate: &realtimev1.Authenticate{AccessToken: raw},
	}})
}

// sendMessage is a call whose text tells calls apart.
func (c *client) sendMessage(id uint32, lane, text string) {
	c.t.Helper()
	c.call(id, lane, messagingv1connect.MessagingServiceSendMessageProcedure, &messagingv1.SendMessageRequest{
		ConversationId: uuid.NewString(), ClientMessageId: uuid.NewString(), Text: text,
	})
}

func (c *client) call(id uint32, lane, procedure string, request proto.Message) {
	c.t.Helper()
	body, err := proto.Marshal(request)
	if c.json {
		body, err = protojson.Marshal(request)
	}
	require.NoError(c.t, err)
	c.send(&realtimev1.ClientFrame{Id: id, Frame: &realtimev1.ClientFrame_Call{
		Call: &realtimev1.Call{Procedure: procedure, Lane: lane, Request: body},
	}})
}

func (c *client) ping(id uint32) {
	c.t.Helper()
	c.send(&realtimev1.ClientFrame{Id: id, Frame: &realtimev1.ClientFrame_Ping{Ping: &realtimev1.Ping{}}})
}

func (c *client) send(frame *realtimev1.ClientFrame) {
	c.t.Helper()
	if !c.json {
		data, err := proto.Marshal(frame)
		require.NoError(c.t, err)
		require.NoError(c.t, c.ws.WriteMessage(websocket.BinaryMessage, data))
		return
	}
	data, err := protojson.Marshal(frame)
	require.NoError(c.t, err)
	if request := frame.GetCall().GetRequest(); request != nil {
		var whole map[string]any
		require.NoError(c.t, json.Unmarshal(data, &whole))
		whole["call"].(map[string]any)["request"] = json.RawMessage(request)
		data, err = json.Marshal(whole)
		require.NoError(c.t, err)
	}
	require.NoError(c.t, c.ws.WriteMessage(websocket.TextMessage, data))
}

// receive reads the next frame. In JSON, Reply.Response holds the JSON object.
func (c *client) receive() *realtimev1.ServerFrame {
	c.t.Helper()
	opcode, data, err := c.ws.ReadMessage()
	require.NoError(c.t, err)
	frame := &realtimev1.ServerFrame{}
	if !c.json {
		require.Equal(c.t, websocket.BinaryMessage, opcode)
		require.NoError(c.t, proto.Unmarshal(data, frame))
		return frame
	}
	require.Equal(c.t, websocket.TextMessage, opcode)
	var reply struct {
		ID    uint32 `json:"id"`
		Reply struct {
			Response json.RawMessage `json:"response"`
		} `json:"reply"`
	}
	require.NoError(c.t, json.Unmarshal(data, &reply))
	if reply.Reply.Response != nil {
		frame.Id = reply.ID
		frame.Frame = &realtimev1.ServerFrame_Reply{Reply: &realtimev1.Reply{
			Result: &realtimev1.Reply_Response{Response: reply.Reply.Response},
		}}
		return frame
	}
	require.NoError(c.t, protojson.Unmarshal(data, frame), string(data))
	return frame
}

// sent reads the reply of a sendMessage.
func (c *client) sent(frame *realtimev1.ServerFrame) *messagingv1.SendMessageResponse {
	c.t.Helper()
	require.Nil(c.t, frame.GetReply().GetError())
	response := &messagingv1.SendMessageResponse{}
	if c.json {
		require.NoError(c.t, protojson.Unmarshal(frame.GetReply().GetResponse(), response))
	} else {
		require.NoError(c.t, proto.Unmarshal(frame.GetReply().GetResponse(), response))
	}
	return response
}

// closed reads on until the close frame and gives it. Frames on the way are
// dropped.
func (c *client) closed() *websocket.CloseError {
	c.t.Helper()
	for {
		_, _, err := c.ws.ReadMessage()
		if err == nil {
			continue
		}
		var closed *websocket.CloseError
		require.ErrorAs(c.t, err, &closed)
		return closed
	}
}
