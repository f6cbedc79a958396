package gateway

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

func TestResyncAfterTheBusWasAway(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	w := newWorld(t, func(s *setup) {
		s.conn = server.Connect(t, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	})
	p, q := newPerson(), newPerson()
	c, d := w.connect(p, SubprotocolProto), w.connect(q, SubprotocolJSON)
	server.Kill9()
	require.Eventually(t, func() bool { return w.gateway.Ready(t.Context()) != nil }, patience, time.Millisecond)
	// A socket that is opened meanwhile can call, and is told like the others.
	e := w.connect(newPerson(), SubprotocolProto)
	e.sendMessage(2, "", "works")
	require.Equal(t, uint32(2), e.receive().GetId())
	server.Restart()
	for _, c := range []*client{c, d, e} {
		require.NotNil(t, c.receive().GetResync())
	}
	require.NoError(t, w.gateway.Ready(t.Context()))
	// Resync means that the subscription stands.
	require.NoError(t, w.publisher.Push(t.Context(), []uuid.UUID{p.user}, entryPush(1)))
	require.Equal(t, int64(1), c.receive().GetPush().GetEntry().GetSeq())
}

func TestResyncIsSpread(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Socket.ResyncWindow = 300 * time.Millisecond })
	const count = 20
	var sockets []*client
	for range count {
		sockets = append(sockets, w.connect(newPerson(), SubprotocolProto))
	}
	told := make(chan time.Duration, count)
	began := time.Now()
	w.gateway.resyncAll(realtime.LossSlow)
	for _, c := range sockets {
		go func() {
			if _, _, err := c.ws.ReadMessage(); err == nil {
				told <- time.Since(began)
			}
		}()
	}
	var last time.Duration
	first := time.Hour
	for range count {
		at := <-told
		first, last = min(first, at), max(last, at)
	}
	require.Greater(t, last-first, 50*time.Millisecond)
}

func TestDrain(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(s *setup) {
		s.backend.send = func(context.Context, *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			close(began)
			<-release
			return &messagingv1.SendMessageResponse{Seq: 9}, nil
		}
	})
	idle, busy, stranger := w.connect(newPerson(), SubprotocolJSON), w.connect(newPerson(), SubprotocolProto), w.dial(SubprotocolProto)
	busy.sendMessage(1, "", "runs on")
	<-began
	w.stop()
	for _, c := range []*client{idle, stranger} {
		closed := c.closed()
		require.Equal(t, websocket.CloseServiceRestart, closed.Code)
		requireComeBack(t, closed.Text, w.gateway.cfg.Socket.DrainReconnect)
	}
	require.Error(t, w.gateway.Ready(t.Context()))
	require.Eventually(t, func() bool {
		_, response, err := w.dialer().DialContext(t.Context(), w.socketURL(), nil)
		return err != nil && (response == nil || response.StatusCode == http.StatusServiceUnavailable)
	}, patience, time.Millisecond, "new sockets are refused")
	require.Eventually(t, func() bool { // each socket is told by itself
		told := true
		w.gateway.hub.each(func(c *connection) {
			c.mu.Lock()
			defer c.mu.Unlock()
			told = told && c.draining
		})
		return told
	}, patience, time.Millisecond, "the busy one is told, too")

	busy.call(2, "", "/parley.messaging.v1.MessagingService/Sync", &messagingv1.SyncRequest{})
	refused := busy.receive()
	require.Equal(t, uint32(2), refused.GetId())
	require.Equal(t, errorv1.Reason_REASON_OVERLOADED, refused.GetReply().GetError().GetInfo().GetReason())
	close(release)
	require.Equal(t, int64(9), busy.sent(busy.receive()).GetSeq())
	require.Equal(t, websocket.CloseServiceRestart, busy.closed().Code)
	select {
	case <-w.stopped:
	case <-time.After(patience):
		require.Fail(t, "the gateway does not end")
	}
}

func TestDrainIsSpreadAndBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.DrainWindow = 300 * time.Millisecond
		s.cfg.Socket.CloseGrace = 100 * time.Millisecond
		s.cfg.Socket.MaxCallTimeout = 200 * time.Millisecond
	})
	const count = 20
	for range count { // they never read, so they never answer the close frame
		w.connect(newPerson(), SubprotocolProto)
	}
	began := time.Now()
	w.stop()
	select {
	case <-w.stopped:
	case <-time.After(patience):
		require.Fail(t, "the gateway does not end")
	}
	require.Greater(t, time.Since(began), 100*time.Millisecond)
}

func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.AuthTimeout = 2 * time.Second
		s.cfg.Limits.AddressStrangers = 3
	})
	var strangers []*client
	for range 3 {
		strangers = append(strangers, w.dial(SubprotocolProto))
	}
	_, response, err := w.dialer().DialContext(t.Context(), w.socketURL(), nil)
	require.ErrorIs(t, err, websocket.ErrBadHandshake)
	require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
	require.NotEmpty(t, response.Header.Get("Retry-After"))
	// A ping does not prolong the time, nor is it answered.
	require.NoError(t, strangers[0].ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(patience)))
	for _, c := range strangers {
		closed := c.closed()
		require.Equal(t, closeAuthTimeout, closed.Code)
		require.Equal(t, reasonAuthTimeout, closed.Text)
	}
	require.Eventually(t, func() bool {
		ws, _, err := w.dialer().DialContext(t.Context(), w.socketURL(), nil)
		if err != nil {
			return false
		}
		c := w.wrap(ws)
		c.authenticate(1, w.token(newPerson(), time.Hour))
		return c.receive().GetWelcome() != nil
	}, patience, 5*time.Millisecond, "their places are free again")
}

func TestAddressesAreBounded(t *testing.T) {
	t.Parallel()
	few := func(s *setup) {
		s.cfg.Limits.AddressSockets = 2
		s.cfg.TrustedProxies = []string{"127.0.0.0/8"}
	}
	from := func(w *world, address string) (*http.Response, error) {
		ws, response, err := w.dialer().DialContext(t.Context(), w.socketURL(), http.Header{"X-Forwarded-For": {address}})
		if err == nil {
			w.wrap(ws)
		}
		return response, err
	}
	t.Run("EachForItself", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, few)
		for range 2 {
			_, err := from(w, "198.51.100.1")
			require.NoError(t, err)
		}
		// What the client wrote itself, before its address, does not count.
		response, err := from(w, "203.0.113.9, 198.51.100.1")
		require.Error(t, err)
		require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
		_, err = from(w, "198.51.100.2")
		require.NoError(t, err)
		_, err = from(w, "2001:db8::1")
		require.NoError(t, err)
		_, err = from(w, "2001:db8::2")
		require.NoError(t, err)
		_, err = from(w, "2001:db8::3")
		require.Error(t, err, "an IPv6 client has a whole /64")
	})
	t.Run("ExemptIsFree", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, few, func(s *setup) { s.cfg.Exempt = []string{"198.51.100.0/24"} })
		for range 5 {
			_, err := from(w, "198.51.100.1")
			require.NoError(t, err)
		}
	})
	t.Run("UntrustedPeerSpeaksForItself", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, few, func(s *setup) { s.cfg.TrustedProxies = nil })
		for range 2 {
			_, err := from(w, uuid.NewString())
			require.NoError(t, err)
		}
		_, err := from(w, "198.51.100.77")
		require.Error(t, err)
	})
	t.Run("NodeHasARate", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(s *setup) { s.cfg.Limits.NodeSocketRate, s.cfg.Limits.NodeSocketBurst = 0.001, 1 })
		_, err := from(w, "")
		require.NoError(t, err)
		response, err := from(w, "")
		require.Error(t, err)
		require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
	})
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Origins = []string{"https://chat.example.org"} })
	for origin, status := range map[string]int{
		"https://chat.example.org":          http.StatusSwitchingProtocols,
		"https://chat.example.org.evil.net": http.StatusForbidden,
		"http://chat.example.org":           http.StatusForbidden,
		"null":                              http.StatusForbidden,
		"https://" + w.address:              http.StatusForbidden,
	} {
		ws, response, err := w.dialer().DialContext(t.Context(), w.socketURL(), http.Header{"Origin": {origin}})
		if err == nil {
			w.wrap(ws)
		}
		require.Equal(t, status, response.StatusCode, origin)
	}
}
