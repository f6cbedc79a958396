package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/client"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const patience = 10 * time.Second

// gateway is the server's side of the protocol, with a log in memory, that
// misbehaves on demand. The real one is met in the whole-system tests.
type gateway struct {
	t   *testing.T
	url string

	mu      sync.Mutex
	log     map[string][]*messagingv1.Entry
	sockets []*socket
	tokens  []string
	syncs   []string // the cursors asked with
	sends   []string // the client ids of all tries

	watches []*realtimev1.Watch
	people  map[string]*realtimev1.Presence
	// frozen is held while the server does nothing.
	frozen sync.RWMutex

	// The hooks below are set before the first connect.

	// life is how long a welcome says that the token is good. 0: an hour.
	life time.Duration
	// refuse answers a call with an error, if not nil. n counts the calls of a
	// procedure from 1.
	refuse func(procedure string, n int) *realtimev1.Error
	// reset says in which Sync, from 1, the client is to drop its state.
	reset int
	calls map[string]int
	// hang may hold a call up, and no other.
	hang func(procedure string)
}

type socket struct {
	ws      *websocket.Conn
	writing sync.Mutex
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{t: t, log: map[string][]*messagingv1.Entry{}, calls: map[string]int{}}
	upgrader := websocket.Upgrader{Subprotocols: []string{client.Subprotocol}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = ws.Close() }()
		g.serve(&socket{ws: ws})
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { g.each(func(s *socket) { _ = s.ws.Close() }) })
	g.url = "ws" + strings.TrimPrefix(server.URL, "http")
	return g
}

func (g *gateway) serve(s *socket) {
	for {
		_, body, err := s.ws.ReadMessage()
		if err != nil {
			return
		}
		g.thaw()
		var frame realtimev1.ClientFrame
		if err := proto.Unmarshal(body, &frame); err != nil {
			return
		}
		answer := &realtimev1.ServerFrame{Id: frame.GetId()}
		switch f := frame.GetFrame().(type) {
		case *realtimev1.ClientFrame_Authenticate:
			answer.Frame = &realtimev1.ServerFrame_Welcome{Welcome: g.welcome(s, f.Authenticate.GetAccessToken())}
		case *realtimev1.ClientFrame_Ping:
			answer.Frame = &realtimev1.ServerFrame_Pong{Pong: &realtimev1.Pong{}}
		case *realtimev1.ClientFrame_Watch:
			answer.Frame = &realtimev1.ServerFrame_Reply{Reply: g.watched(f.Watch)}
		case *realtimev1.ClientFrame_Call:
			if g.hang != nil {
				go func() {
					g.hang(f.Call.GetProcedure())
					answer.Frame = &realtimev1.ServerFrame_Reply{Reply: g.call(f.Call)}
					s.send(answer)
				}()
				continue
			}
			answer.Frame = &realtimev1.ServerFrame_Reply{Reply: g.call(f.Call)}
		}
		s.send(answer)
	}
}

// thaw waits while the server is frozen.
func (g *gateway) thaw() {
	g.frozen.RLock()
	g.frozen.RUnlock() //nolint:staticcheck,gocritic // an empty section: to wait is all
}

// freeze has the server do nothing more, or go on.
func (g *gateway) freeze(frozen bool) {
	if frozen {
		g.frozen.Lock()
	} else {
		g.frozen.Unlock()
	}
}

func (s *socket) send(frame *realtimev1.ServerFrame) {
	body, err := proto.Marshal(frame)
	if err != nil {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.ws.WriteMessage(websocket.BinaryMessage, body) // the client may have left
}

func (g *gateway) welcome(s *socket, token string) *realtimev1.Welcome {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sockets, g.tokens = append(g.sockets, s), append(g.tokens, token)
	now, life := time.Now(), g.life
	if life == 0 {
		life = time.Hour
	}
	return &realtimev1.Welcome{UserId: "ada", ServerTime: timestamppb.New(now), TokenExpiresAt: timestamppb.New(now.Add(life))}
}

func (g *gateway) call(call *realtimev1.Call) *realtimev1.Reply {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls[call.GetProcedure()]++
	n := g.calls[call.GetProcedure()]
	var res proto.Message
	switch call.GetProcedure() {
	case messagingv1connect.MessagingServiceSyncProcedure:
		var req messagingv1.SyncRequest
		_ = proto.Unmarshal(call.GetRequest(), &req) // our own client's
		g.syncs = append(g.syncs, req.GetCursor())
		answer := &messagingv1.SyncResponse{NextCursor: "next", Reset_: n == g.reset}
		for id, entries := range g.log {
			answer.Conversations = append(answer.Conversations, &messagingv1.Conversation{Id: id, HeadSeq: int64(len(entries))})
		}
		res = answer
	case messagingv1connect.MessagingServiceListEventsProcedure:
		var req messagingv1.ListEventsRequest
		_ = proto.Unmarshal(call.GetRequest(), &req)
		entries := g.log[req.GetConversationId()]
		after := min(int(req.GetAfterSeq()), len(entries))
		const page = 3
		end := min(after+page, len(entries))
		res = &messagingv1.ListEventsResponse{Entries: entries[after:end], HasMore: end < len(entries)}
	case messagingv1connect.MessagingServiceSendMessageProcedure:
		var req messagingv1.SendMessageRequest
		_ = proto.Unmarshal(call.GetRequest(), &req)
		g.sends = append(g.sends, req.GetClientMessageId())
		res = &messagingv1.SendMessageResponse{Seq: int64(n)}
	case messagingv1connect.MessagingServiceSetTypingProcedure:
		res = &messagingv1.SetTypingResponse{}
	}
	if g.refuse != nil {
		if refused := g.refuse(call.GetProcedure(), n); refused != nil {
			return &realtimev1.Reply{Result: &realtimev1.Reply_Error{Error: refused}}
		}
	}
	body, err := proto.Marshal(res)
	if err != nil {
		return &realtimev1.Reply{Result: &realtimev1.Reply_Error{Error: &realtimev1.Error{Code: "internal", Message: err.Error()}}}
	}
	return &realtimev1.Reply{Result: &realtimev1.Reply_Response{Response: body}}
}

// write appends an entry to a conversation and returns it; nobody is told.
func (g *gateway) write(conversation string) *messagingv1.Entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := &messagingv1.Entry{
		ConversationId: conversation, Seq: int64(len(g.log[conversation]) + 1),
		Body: &messagingv1.Entry_Message{Message: &messagingv1.Message{Text: "x"}},
	}
	g.log[conversation] = append(g.log[conversation], e)
	return e
}

// push tells all sockets of an entry.
func (g *gateway) push(e *messagingv1.Entry) {
	g.each(func(s *socket) {
		s.send(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: e}}}})
	})
}

// close ends all sockets with a code.
func (g *gateway) close(code int, reason string) {
	g.each(func(s *socket) {
		_ = s.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(patience))
	})
}

func (g *gateway) each(do func(*socket)) {
	g.mu.Lock()
	sockets := append([]*socket(nil), g.sockets...)
	g.mu.Unlock()
	for _, s := range sockets {
		do(s)
	}
}

// asked is a copy of what was noted.
func (g *gateway) asked(list *[]string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), *list...)
}

func refusal(code connect.Code, reason errorv1.Reason) *realtimev1.Error {
	return &realtimev1.Error{Code: code.String(), Message: "no", Info: &errorv1.ErrorInfo{Reason: reason}}
}

func token(context.Context) (string, error) { return "a token", nil }

func dial(t *testing.T, g *gateway, onPush func(*realtimev1.Push)) *client.Conn {
	t.Helper()
	conn, err := client.Dial(t.Context(), client.Config{URL: g.url, Token: token, OnPush: onPush})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
