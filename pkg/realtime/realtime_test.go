package realtime_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/testkit"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
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

const patience = 10 * time.Second

type received struct {
	user  uuid.UUID
	frame *realtimev1.ServerFrame
}

// hub is a subscriber that runs until the test ends.
type hub struct {
	*realtime.Subscriber
	frames chan received
	losses chan realtime.Loss
}

func newHub(t *testing.T, conn *nats.Conn, cfg realtime.SubscriberConfig) *hub {
	t.Helper()
	h, stop := startHub(t, conn, cfg)
	t.Cleanup(stop)
	return h
}

// startHub is newHub for a test that ends it.
func startHub(t *testing.T, conn *nats.Conn, cfg realtime.SubscriberConfig) (h *hub, stop func()) {
	t.Helper()
	h = &hub{frames: make(chan received, 1000), losses: make(chan realtime.Loss, 1000)}
	if cfg.Frame == nil {
		cfg.Frame = func(user uuid.UUID, data []byte) {
			frame := &realtimev1.ServerFrame{}
			if err := proto.Unmarshal(data, frame); err != nil {
				t.Error(err)
			}
			h.frames <- received{user, frame}
		}
	}
	cfg.Loss = func(loss realtime.Loss) { h.losses <- loss }
	h.Subscriber = realtime.NewSubscriber(conn, testkit.Logger(t), cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	return h, func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func (h *hub) next(t *testing.T) received {
	t.Helper()
	select {
	case r := <-h.frames:
		return r
	case <-time.After(patience):
		require.Fail(t, "no push came")
		return received{}
	}
}

func (h *hub) loss(t *testing.T) realtime.Loss {
	t.Helper()
	select {
	case loss := <-h.losses:
		return loss
	case <-time.After(patience):
		require.Fail(t, "no loss was told")
		return ""
	}
}

func push(seq int64) *realtimev1.Push {
	return &realtimev1.Push{Event: &realtimev1.Push_Receipt{Receipt: &messagingv1.Receipt{ReadSeq: seq}}}
}

func TestPushReachesSubscribedPeople(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	h, p := newHub(t, conn, realtime.SubscriberConfig{}), realtime.New(conn, nil, testkit.Logger(t))
	a, b, stranger := uuid.New(), uuid.New(), uuid.New()
	for _, user := range []uuid.UUID{a, b, a} {
		require.NoError(t, h.Subscribe(user))
	}
	require.NoError(t, h.Flush(t.Context()))
	for seq := int64(1); seq <= 50; seq++ {
		require.NoError(t, p.Push(t.Context(), []uuid.UUID{a, stranger}, push(seq)))
	}
	for seq := int64(1); seq <= 50; seq++ {
		r := h.next(t)
		require.Equal(t, a, r.user)
		require.Equal(t, seq, r.frame.GetPush().GetReceipt().GetReadSeq(), "in order, and once though subscribed twice")
	}
	h.Unsubscribe(a)
	h.Unsubscribe(a)
	require.NoError(t, h.Flush(t.Context()))
	require.NoError(t, p.Push(t.Context(), []uuid.UUID{a, b}, push(51)))
	require.Equal(t, b, h.next(t).user)
	require.Empty(t, h.losses)
}

func TestPushToNobodyAndTooLarge(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	p := realtime.New(conn, nil, testkit.Logger(t))
	require.NoError(t, p.Push(t.Context(), nil, push(1)))
	big := &realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: &messagingv1.Entry{
		SenderId: strings.Repeat("x", int(conn.MaxPayload())),
	}}}
	require.ErrorIs(t, p.Push(t.Context(), []uuid.UUID{uuid.New()}, big), realtime.ErrTooLarge)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.Push(ctx, []uuid.UUID{uuid.New()}, push(1)), context.Canceled)
}

func TestLossAfterReconnect(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	conn := server.Connect(t, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	h, p := newHub(t, conn, realtime.SubscriberConfig{}), realtime.New(conn, nil, testkit.Logger(t))
	before, meanwhile := uuid.New(), uuid.New()
	require.NoError(t, h.Subscribe(before))
	require.NoError(t, h.Flush(t.Context()))
	require.NoError(t, h.Ready(t.Context()))
	server.Kill9()
	require.Eventually(t, func() bool { return h.Ready(t.Context()) != nil }, patience, time.Millisecond)
	require.NoError(t, h.Subscribe(meanwhile))
	require.ErrorIs(t, h.Flush(t.Context()), realtime.ErrAway)
	server.Restart()
	require.Equal(t, realtime.LossReconnect, h.loss(t))
	// Whoever acts on a loss finds the subscriptions made, those of meanwhile too.
	require.NoError(t, p.Push(t.Context(), []uuid.UUID{before, meanwhile}, push(1)))
	require.ElementsMatch(t, []uuid.UUID{before, meanwhile}, []uuid.UUID{h.next(t).user, h.next(t).user})
}

func TestLossAfterALateFlush(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	h := newHub(t, server.Connect(t), realtime.SubscriberConfig{})
	require.NoError(t, h.Subscribe(uuid.New()))
	server.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, h.Flush(ctx), context.DeadlineExceeded)
	server.Resume()
	require.Equal(t, realtime.LossLate, h.loss(t))
}

// TestLossOfDroppedMessages holds that every drop is told, also the second of a
// streak, which the library does not report.
func TestLossOfDroppedMessages(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	stuck, release := make(chan struct{}), make(chan struct{})
	h := newHub(t, conn, realtime.SubscriberConfig{Readers: 1, Buffer: 1, Frame: func(uuid.UUID, []byte) {
		select {
		case stuck <- struct{}{}:
		case <-release:
		}
		<-release
	}})
	t.Cleanup(func() { close(release) }) // before the hub's own cleanup, which waits for the reader
	p := realtime.New(conn, nil, testkit.Logger(t))
	user := uuid.New()
	require.NoError(t, h.Subscribe(user))
	require.NoError(t, h.Flush(t.Context()))
	send := func(seq int64) {
		t.Helper()
		require.NoError(t, p.Push(t.Context(), []uuid.UUID{user}, push(seq)))
	}
	send(1)
	select {
	case <-stuck: // with the first, so the second fills the buffer and no other fits
	case <-time.After(patience):
		require.Fail(t, "no push came")
	}
	send(2)
	for seq := int64(3); seq <= 5; seq++ {
		send(seq)
		require.Equal(t, realtime.LossSlow, h.loss(t))
	}
	require.Empty(t, h.losses, "each drop is told once")
}
