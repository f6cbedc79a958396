package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/history"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

const (
	// soon bounds what takes milliseconds on an idle machine.
	soon = 30 * time.Second
	// eventually bounds what waits for restarts and repairs.
	eventually = 90 * time.Second
	poll       = 20 * time.Millisecond
	password   = "a password of no importance"
)

// person is somebody with an account and one session.
type person struct {
	id, username string
	sys          *system.System

	mu     sync.Mutex
	tokens *authv1.Tokens
}

// register makes an account through a gateway.
func register(t *testing.T, sys *system.System, gateway int) *person {
	t.Helper()
	name := "u" + strings.ReplaceAll(uuid.NewString(), "-", "")[:20]
	res, err := authAt(sys, gateway).Register(t.Context(), &authv1.RegisterRequest{
		Email: name + "@example.org", Username: name, Password: password, DeviceName: "phone",
	})
	require.NoError(t, err, "register")
	return &person{id: res.GetUserId(), username: name, sys: sys, tokens: res.GetTokens()}
}

// logIn starts another session of the person.
func (p *person) logIn(t *testing.T) *person {
	t.Helper()
	res, err := authAt(p.sys, 0).LogIn(t.Context(), &authv1.LogInRequest{Login: p.username, Password: password, DeviceName: "laptop"})
	require.NoError(t, err, "log in")
	return &person{id: p.id, username: p.username, sys: p.sys, tokens: res.GetTokens()}
}

func (p *person) token(context.Context) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tokens.GetAccessToken(), nil
}

// bearer adds the person's token to calls over HTTP.
func (p *person) bearer() connect.ClientOption {
	return connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			raw, err := p.token(ctx)
			if err != nil {
				return nil, err
			}
			req.Header().Set("Authorization", "Bearer "+raw)
			return next(ctx, req)
		}
	}))
}

// auth and messaging are the person's clients over HTTP through a gateway.
func (p *person) auth(gateway int) authv1connect.AuthServiceClient {
	return authv1connect.NewAuthServiceClient(web, base(p.sys, gateway), p.bearer())
}

func (p *person) messaging(gateway int, options ...connect.ClientOption) messagingv1connect.MessagingServiceClient {
	return messagingv1connect.NewMessagingServiceClient(web, base(p.sys, gateway), append(options, p.bearer())...)
}

func authAt(sys *system.System, gateway int) authv1connect.AuthServiceClient {
	return authv1connect.NewAuthServiceClient(web, base(sys, gateway))
}

// web is one client for all tests: they are one browser with many tabs.
var web = &http.Client{Timeout: soon}

func base(sys *system.System, gateway int) string { return "http://" + hostOf(sys, gateway) }

func hostOf(sys *system.System, gateway int) string { return sys.Gateways[gateway%len(sys.Gateways)] }

// talkTo returns the direct conversation with another person.
func (p *person) talkTo(t *testing.T, other *person) string {
	t.Helper()
	res, err := p.messaging(0).CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: other.id})
	require.NoError(t, err, "start a conversation")
	return res.GetConversation().GetId()
}

// device is a person's device with what it showed.
type device struct {
	*client.Device

	name  string
	owner *person

	mu      sync.Mutex
	shown   map[string][]history.Entry // by conversation
	resyncs int
}

// deviceOptions change a device from its defaults.
type deviceOptions struct {
	gateway int
	idle    time.Duration
	drop    func(*realtimev1.Push) bool
	// way replaces the address of the gateway.
	way string
}

// connect gives the person a device that runs until the test ends. It is online
// when connect returns.
func (p *person) connect(t *testing.T, name string, o deviceOptions) *device {
	t.Helper()
	d := &device{name: p.username + " " + name, owner: p, shown: map[string][]history.Entry{}}
	host := o.way
	if host == "" {
		host = hostOf(p.sys, o.gateway)
	}
	d.Device = client.NewDevice(client.DeviceConfig{
		Config: client.Config{
			URL: "ws://" + host + "/v1/ws", Token: p.token,
			OnPush: func(push *realtimev1.Push) {
				if push == nil {
					d.mu.Lock()
					defer d.mu.Unlock()
					d.resyncs++
				}
			},
			NetDial: p.dialer(o.way != ""),
		},
		OnEntry: d.show, DropPush: o.drop, IdleInterval: o.idle, ReconnectCap: time.Second,
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.Run(t.Context()) // a session that is over is what some stories are about
	}()
	t.Cleanup(func() { <-ended })
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, err := d.Connected(ctx)
	require.NoError(t, err, "connect %s", d.name)
	return d
}

// dialer finds another gateway when the usual one is away, as a balancer would.
func (p *person) dialer(fixed bool) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, network, address)
		if err == nil || fixed {
			return conn, err
		}
		for _, other := range p.sys.Gateways {
			if conn, oerr := dialer.DialContext(ctx, network, other); oerr == nil {
				return conn, nil
			}
		}
		return nil, err
	}
}

func (d *device) show(e *messagingv1.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shown[e.GetConversationId()] = append(d.shown[e.GetConversationId()], entryOf(e))
}

// entries is what the device showed of a conversation so far.
func (d *device) entries(conversation string) []history.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]history.Entry(nil), d.shown[conversation]...)
}

// head is the seq of the last entry that the device showed.
func (d *device) head(conversation string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if shown := d.shown[conversation]; len(shown) > 0 {
		return shown[len(shown)-1].Seq
	}
	return 0
}

// awaitResync waits until the device has been told that it may have missed
// something.
func (d *device) awaitResync(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.resyncs > 0
	}, soon, poll, "%s is told to resync", d.name)
}

// say sends one message and requires that it is accepted.
func (d *device) say(t *testing.T, conversation, text string) *messagingv1.SendMessageResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	res, err := d.Send(ctx, &messagingv1.SendMessageRequest{ConversationId: conversation, ClientMessageId: newID(t), Text: text}, nil)
	require.NoError(t, err, "send")
	return res
}

// awaitHead waits until the device shows a conversation up to seq.
func (d *device) awaitHead(t *testing.T, conversation string, seq int64, within time.Duration) {
	t.Helper()
	require.Eventually(t, func() bool { return d.head(conversation) >= seq }, within, poll,
		"%s shows the conversation up to seq %d", d.name, seq)
}

func newID(t *testing.T) string {
	t.Helper()
	id, err := freshID()
	require.NoError(t, err)
	return id
}

func freshID() (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	return id.String(), nil
}

// entryOf is an entry as the history checker knows it.
func entryOf(e *messagingv1.Entry) history.Entry {
	entry := history.Entry{
		Seq: e.GetSeq(), Ordinal: e.GetOrdinal(), Sender: e.GetSenderId(), ClientID: e.GetClientMessageId(),
		At: e.GetCreatedAt().AsTime().UnixNano(), Message: e.GetMessage() != nil,
	}
	if entry.Message {
		entry.Content = history.Hash(e.GetMessage().GetText())
	}
	return entry
}

// readLog reads a conversation from its beginning, over HTTP.
func (p *person) readLog(t *testing.T, gateway int, conversation string) []history.Entry {
	t.Helper()
	var entries []history.Entry
	for {
		res, err := p.messaging(gateway).ListEvents(t.Context(), &messagingv1.ListEventsRequest{
			ConversationId: conversation, AfterSeq: int64(len(entries)), Limit: 200,
		})
		require.NoError(t, err, "read the log")
		for _, e := range res.GetEntries() {
			entries = append(entries, entryOf(e))
		}
		if !res.GetHasMore() {
			return entries
		}
		require.NotEmpty(t, res.GetEntries(), "a page that promises more holds something")
	}
}

// text makes every message different.
func text(device string, n int) string { return fmt.Sprintf("%s says %d", device, n) }
