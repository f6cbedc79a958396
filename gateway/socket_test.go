package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// inBoth runs a test in both subprotocols.
func inBoth(t *testing.T, test func(t *testing.T, subprotocol string)) {
	t.Helper()
	for _, subprotocol := range []string{SubprotocolProto, SubprotocolJSON} {
		t.Run(subprotocol, func(t *testing.T) {
			t.Parallel()
			test(t, subprotocol)
		})
	}
}

func entryPush(seq int64) *realtimev1.Push {
	return &realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: &messagingv1.Entry{
		ConversationId: uuid.Nil.String(), Seq: seq,
		Body: &messagingv1.Entry_Message{Message: &messagingv1.Message{Text: "hi"}},
	}}}
}

func TestSocketCallsAndPushes(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, subprotocol string) {
		w := newWorld(t)
		p := newPerson()
		c := w.connect(p, subprotocol)
		c.sendMessage(5, "a", "hello")
		reply := c.receive()
		require.Equal(t, uint32(5), reply.GetId())
		require.Equal(t, int64(7), c.sent(reply).GetSeq())
		require.NotEmpty(t, w.backend.header.Load().Get("X-Forwarded-For"))

		require.NoError(t, w.publisher.Push(t.Context(), []uuid.UUID{p.user, uuid.New()}, entryPush(3)))
		require.Equal(t, int64(3), c.receive().GetPush().GetEntry().GetSeq())
	})
}

func TestSocketOfHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newPerson()
	header := http.Header{"Authorization": {"Bearer " + w.token(p, time.Hour)}}
	ws, response, err := w.dialer().DialContext(t.Context(), w.socketURL(), header)
	require.NoError(t, err)
	require.Empty(t, response.Header.Get("Sec-WebSocket-Protocol"))
	c := w.wrap(ws)
	welcome := c.receive()
	require.Zero(t, welcome.GetId())
	require.Equal(t, p.session.String(), welcome.GetWelcome().GetSessionId())

	header.Set("Authorization", "Bearer "+w.token(p, -time.Hour))
	_, response, err = w.dialer().DialContext(t.Context(), w.socketURL(), header)
	require.ErrorIs(t, err, websocket.ErrBadHandshake)
	require.Equal(t, http.StatusUnauthorized, response.StatusCode)
}

func TestPushGoesToAllSocketsOfAPerson(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice, bob := newPerson(), newPerson()
	sockets := []*client{
		w.connect(alice, SubprotocolProto), w.connect(alice, SubprotocolJSON),
		w.connect(bob, SubprotocolProto), w.connect(bob, SubprotocolJSON),
	}
	for seq := int64(1); seq <= 20; seq++ {
		require.NoError(t, w.publisher.Push(t.Context(), []uuid.UUID{alice.user, bob.user}, entryPush(seq)))
	}
	for _, c := range sockets {
		for seq := int64(1); seq <= 20; seq++ {
			require.Equal(t, seq, c.receive().GetPush().GetEntry().GetSeq())
		}
	}
	// One of two sockets goes: the other still gets pushes.
	require.NoError(t, sockets[0].ws.Close())
	require.Eventually(t, func() bool { return w.sockets(alice) == 1 }, patience, time.Millisecond)
	require.NoError(t, w.publisher.Push(t.Context(), []uuid.UUID{alice.user}, entryPush(21)))
	require.Equal(t, int64(21), sockets[1].receive().GetPush().GetEntry().GetSeq())
}

// sockets counts a person's sockets in the hub.
func (w *world) sockets(p person) int {
	n := 0
	w.gateway.hub.each(func(c *connection) {
		if c.user == p.user {
			n++
		}
	})
	return n
}

func TestLaneIsInOrder(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, subprotocol string) {
		var order []string // a lane has one writer at a time; the race detector holds us to it
		w := newWorld(t, func(s *setup) {
			s.backend.send = func(_ context.Context, r *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
				order = append(order, r.GetText())
				return &messagingv1.SendMessageResponse{Seq: int64(len(order))}, nil
			}
		})
		c := w.connect(newPerson(), subprotocol)
		const calls = 30
		for i := uint32(1); i <= calls; i++ {
			c.sendMessage(i, "conversation", fmt.Sprint(i))
		}
		for i := uint32(1); i <= calls; i++ {
			reply := c.receive()
			require.Equal(t, i, reply.GetId())
			require.Equal(t, int64(i), c.sent(reply).GetSeq())
		}
		require.Len(t, order, calls)
	})
}

func TestLanesRunBesideEachOther(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	w := newWorld(t, func(s *setup) {
		s.backend.send = func(ctx context.Context, r *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			if r.GetText() == "slow" {
				select {
				case <-release:
				case <-ctx.Done():
				}
			}
			return &messagingv1.SendMessageResponse{}, nil
		}
	})
	c := w.connect(newPerson(), SubprotocolProto)
	c.sendMessage(1, "a", "slow")
	c.sendMessage(2, "a", "behind it")
	c.sendMessage(3, "b", "quick")
	c.sendMessage(4, "", "quick")
	first, second := c.receive().GetId(), c.receive().GetId()
	require.ElementsMatch(t, []uint32{3, 4}, []uint32{first, second})
	close(release)
	require.Equal(t, uint32(1), c.receive().GetId())
	require.Equal(t, uint32(2), c.receive().GetId())
}

func TestOpenCallsAreBounded(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.OpenCalls = 3
		s.backend.send = func(context.Context, *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			<-release
			return &messagingv1.SendMessageResponse{}, nil
		}
	})
	c := w.connect(newPerson(), SubprotocolJSON)
	c.sendMessage(1, "", "x")
	c.sendMessage(2, "a", "x")
	c.sendMessage(3, "a", "waits in its lane and counts")
	c.sendMessage(4, "", "too many")
	refused := c.receive()
	require.Equal(t, uint32(4), refused.GetId())
	require.Equal(t, "resource_exhausted", refused.GetReply().GetError().GetCode())
	require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, refused.GetReply().GetError().GetInfo().GetReason())
	require.NotNil(t, refused.GetReply().GetError().GetInfo().GetRetryAfter())
	close(release)
	for range 3 {
		require.NotNil(t, c.receive().GetReply().GetResponse())
	}
	c.sendMessage(5, "", "again")
	require.Equal(t, uint32(5), c.receive().GetId())
}

// A lane that does not keep up takes no further call, however few are open: to have them wait would only make the
// answers late. Other lanes go on, and so does this one when it has caught up.
func TestLaneThatIsBehindTakesNoMore(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.LaneWait = time.Millisecond
		s.backend.send = func(_ context.Context, r *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			if r.GetText() == "slow" {
				<-release
			}
			return &messagingv1.SendMessageResponse{}, nil
		}
	})
	c := w.connect(newPerson(), SubprotocolJSON)
	c.sendMessage(1, "a", "slow")
	c.sendMessage(2, "a", "waits")
	id := uint32(3)
	var refused *realtimev1.ServerFrame
	for ; refused == nil; id += 2 { // until the one that waits has waited long enough
		c.sendMessage(id, "a", "behind it")
		c.sendMessage(id+1, "b", "beside it")
		reply := c.receive()
		if reply.GetId() == id {
			refused = reply
			reply = c.receive()
		}
		require.Equal(t, id+1, reply.GetId())
		require.NotNil(t, reply.GetReply().GetResponse())
	}
	require.Equal(t, "resource_exhausted", refused.GetReply().GetError().GetCode())
	require.Equal(t, errorv1.Reason_REASON_OVERLOADED, refused.GetReply().GetError().GetInfo().GetReason())
	require.Positive(t, refused.GetReply().GetError().GetInfo().GetRetryAfter().AsDuration())
	close(release)
	for waiting := uint32(1); waiting < id-2; waiting++ {
		if waiting > 2 && waiting%2 == 0 {
			continue // of the other lane, answered above
		}
		reply := c.receive()
		require.Equal(t, waiting, reply.GetId())
		require.NotNil(t, reply.GetReply().GetResponse(), "whoever was taken in is served")
	}
	c.sendMessage(id, "a", "again")
	require.NotNil(t, c.receive().GetReply().GetResponse())
}

func TestCallHasADeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.MaxCallTimeout = 50 * time.Millisecond
		s.backend.send = func(ctx context.Context, _ *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	c := w.connect(newPerson(), SubprotocolProto)
	c.sendMessage(1, "", "x")
	require.Equal(t, errorv1.Reason_REASON_DEADLINE_EXCEEDED, c.receive().GetReply().GetError().GetInfo().GetReason())
}

func TestCallEndsWithItsSocket(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(s *setup) {
		s.backend.send = func(ctx context.Context, _ *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			close(began)
			<-ctx.Done()
			close(ended)
			return nil, ctx.Err()
		}
	})
	c := w.connect(newPerson(), SubprotocolProto)
	c.sendMessage(1, "", "x")
	<-began
	require.NoError(t, c.ws.Close())
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(t, "the call goes on")
	}
}

func TestSlowConsumerIsClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Socket.QueueBytes = 8192 })
	p := newPerson()
	c := w.connect(p, SubprotocolProto)
	// The client reads nothing: the kernel's buffers fill, then the queue.
	big := entryPush(1)
	big.GetEntry().GetMessage().Text = string(make([]byte, 60_000))
	require.Eventually(t, func() bool {
		for range 50 {
			if err := w.publisher.Push(t.Context(), []uuid.UUID{p.user}, big); err != nil {
				return false
			}
		}
		return w.ending(p)
	}, patience, time.Millisecond)
	closed := c.closed()
	require.Equal(t, closeSlow, closed.Code)
	requireComeBack(t, closed.Text, w.gateway.cfg.Socket.SlowReconnect)
}

func (w *world) ending(p person) bool {
	var ending bool
	w.gateway.hub.each(func(c *connection) { ending = ending || (c.user == p.user && c.isEnding()) })
	return ending
}

func requireComeBack(t *testing.T, reason string, atMost time.Duration) {
	t.Helper()
	var told struct {
		ReconnectMs int64 `json:"reconnect_ms"`
		Resume      bool  `json:"resume"`
	}
	require.NoError(t, json.Unmarshal([]byte(reason), &told), reason)
	require.True(t, told.Resume)
	require.LessOrEqual(t, told.ReconnectMs, atMost.Milliseconds())
}

func TestRevokedSessionLosesItsSockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newPerson()
	other := person{p.user, uuid.New()}
	c, d, stays := w.connect(p, SubprotocolProto), w.connect(p, SubprotocolJSON), w.connect(other, SubprotocolProto)
	began := time.Now()
	w.revocations.Add(p.session, w.clock.Now())
	for _, c := range []*client{c, d} {
		closed := c.closed()
		require.Equal(t, closeUnauthentic, closed.Code)
		require.Equal(t, "SESSION_REVOKED", closed.Text)
	}
	require.Less(t, time.Since(began), 2*time.Second)
	stays.ping(2)
	require.NotNil(t, stays.receive().GetPong())

	again := w.dial(SubprotocolProto)
	again.authenticate(1, w.token(p, time.Hour))
	require.Equal(t, "SESSION_REVOKED", again.closed().Text)
}

func TestExpiryAndRenewal(t *testing.T) {
	t.Parallel()
	fake := clock.NewFake(time.Now())
	w := newWorld(t, func(s *setup) {
		s.clock = fake
		s.cfg.Socket.PingInterval = 20 * time.Millisecond // also the rhythm of looking at the clock
	})
	p := newPerson()
	c := w.connect(p, SubprotocolProto)
	fake.Advance(50 * time.Minute)
	c.authenticate(2, w.token(p, time.Hour))
	require.NotNil(t, c.receive().GetWelcome())
	fake.Advance(50 * time.Minute)
	c.ping(3)
	require.NotNil(t, c.receive().GetPong(), "renewed in time")
	fake.Advance(20 * time.Minute)
	closed := c.closed()
	require.Equal(t, closeExpired, closed.Code)
	require.Equal(t, "TOKEN_EXPIRED", closed.Text)
}

// A call that waits in its lane is made with the token that the socket has by then.
func TestRenewalReachesTheLanes(t *testing.T) {
	t.Parallel()
	fake := clock.NewFake(time.Now())
	release := make(chan struct{})
	w := newWorld(t, func(s *setup) {
		s.clock = fake
		s.backend.send = func(_ context.Context, r *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			if r.GetText() == "slow" {
				<-release
			}
			return &messagingv1.SendMessageResponse{}, nil
		}
	})
	p := newPerson()
	c := w.connect(p, SubprotocolProto)
	c.sendMessage(2, "a", "slow")
	c.sendMessage(3, "a", "waits")
	fake.Advance(50 * time.Minute)
	c.authenticate(4, w.token(p, time.Hour))
	require.NotNil(t, c.receive().GetWelcome())
	fake.Advance(50 * time.Minute)
	close(release)
	for id := uint32(2); id <= 3; id++ {
		reply := c.receive()
		require.Equal(t, id, reply.GetId())
		require.NotNil(t, reply.GetReply().GetResponse(), reply)
	}
}

func TestSilentClientIsDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.PingInterval = 50 * time.Millisecond
		s.cfg.Socket.DeadAfter = time.Second
	})
	quiet, lively := w.connect(newPerson(), SubprotocolProto), w.connect(newPerson(), SubprotocolProto)
	quiet.ws.SetPingHandler(func(string) error { return nil }) // does not answer
	pings := make(chan struct{}, 100)
	lively.ws.SetPingHandler(func(data string) error {
		select {
		case pings <- struct{}{}:
		default:
		}
		return lively.ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(patience))
	})
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		_, _, _ = lively.ws.ReadMessage() // answers pings until the test closes the socket
	}()
	require.Equal(t, closeSilent, quiet.closed().Code)
	for range 5 {
		<-pings
	}
	require.NoError(t, lively.ws.Close())
	<-reading
}

func TestUserHasALimitOfSockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Limits.UserSockets = 2 })
	p := newPerson()
	w.connect(p, SubprotocolProto)
	w.connect(p, SubprotocolProto)
	c := w.dial(SubprotocolProto)
	c.authenticate(1, w.token(p, time.Hour))
	require.Equal(t, closeTooMany, c.closed().Code)
}

func TestFramesAreRateLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.FrameRate = 0.1
		s.cfg.Socket.FrameBurst = 5
	})
	c := w.connect(newPerson(), SubprotocolProto)
	for i := uint32(1); i <= 6; i++ {
		c.sendMessage(i, "one", "x")
	}
	replies := map[uint32]*realtimev1.Reply{}
	for range 6 {
		frame := c.receive()
		replies[frame.GetId()] = frame.GetReply()
	}
	require.NotNil(t, replies[5].GetResponse())
	require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, replies[6].GetError().GetInfo().GetReason())
	for i := uint32(7); i < 20; i++ {
		c.sendMessage(i, "one", "does not listen")
	}
	closed := c.closed()
	require.Equal(t, closeTooMany, closed.Code)
	requireComeBack(t, closed.Text, w.gateway.cfg.Socket.AbuseReconnect)
}
