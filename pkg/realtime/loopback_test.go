package realtime_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/testkit"
)

// TestLoopbackTakesNoBus holds that pushes of the same process are there when Push
// returns, in order, and that the server of the bus sees nothing of it.
func TestLoopbackTakesNoBus(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	user := uuid.New()
	bus := make(chan *nats.Msg, 1)
	_, err := conn.ChanSubscribe(realtime.Subject(user), bus)
	require.NoError(t, err)

	loopback := realtime.NewLoopback()
	h, p := newHub(t, conn, realtime.SubscriberConfig{Loopback: loopback}), realtime.New(conn, loopback, testkit.Logger(t))
	require.NoError(t, h.Subscribe(user))
	require.NoError(t, h.Flush(t.Context()))
	for seq := int64(1); seq <= 50; seq++ {
		require.NoError(t, p.Push(t.Context(), []uuid.UUID{user}, push(seq)))
		require.Len(t, h.frames, 1)
		require.Equal(t, seq, h.next(t).frame.GetPush().GetReceipt().GetReadSeq())
	}
	require.NoError(t, conn.Flush())
	require.Empty(t, bus)
	require.Empty(t, h.losses)
}

// TestLoopbackEnds holds that after its end everybody gets what the bus brings, those
// too who came while it stood, and that a loss is told when that is so.
func TestLoopbackEnds(t *testing.T) {
	t.Parallel()
	server := testkit.NATS(t)
	conn := server.Connect(t)
	loopback := realtime.NewLoopback()
	h, p := newHub(t, conn, realtime.SubscriberConfig{Loopback: loopback}), realtime.New(conn, loopback, testkit.Logger(t))
	elsewhere := newHub(t, server.Connect(t), realtime.SubscriberConfig{})
	before, gone, after := uuid.New(), uuid.New(), uuid.New()
	require.NoError(t, h.Subscribe(before))
	require.NoError(t, h.Subscribe(gone))
	h.Unsubscribe(gone)

	loopback.End()
	loopback.End()
	require.Equal(t, realtime.LossLate, h.loss(t))
	require.NoError(t, h.Subscribe(after))
	require.NoError(t, h.Flush(t.Context()))
	require.NoError(t, elsewhere.Subscribe(before))
	require.NoError(t, elsewhere.Flush(t.Context()))
	people := []uuid.UUID{before, gone, after}
	require.NoError(t, p.Push(t.Context(), people, push(1)))
	require.ElementsMatch(t, []uuid.UUID{before, after}, []uuid.UUID{h.next(t).user, h.next(t).user})
	require.Equal(t, before, elsewhere.next(t).user)
	// Who publishes knows nothing of the loopback: another process.
	stranger := realtime.New(server.Connect(t), nil, testkit.Logger(t))
	require.NoError(t, stranger.Push(t.Context(), people, push(2)))
	require.ElementsMatch(t, []uuid.UUID{before, after}, []uuid.UUID{h.next(t).user, h.next(t).user})
	require.Empty(t, h.frames)
	require.Empty(t, h.losses)
}

// TestLoopbackWithoutAGateway holds that pushes take the bus before there is a gateway
// in the process and after it has ended.
func TestLoopbackWithoutAGateway(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	user := uuid.New()
	bus := make(chan *nats.Msg, 2)
	_, err := conn.ChanSubscribe(realtime.Subject(user), bus)
	require.NoError(t, err)
	loopback := realtime.NewLoopback()
	p := realtime.New(conn, loopback, testkit.Logger(t))
	require.NoError(t, p.Push(t.Context(), []uuid.UUID{user}, push(1)))
	h, stop := startHub(t, conn, realtime.SubscriberConfig{Loopback: loopback})
	require.NoError(t, p.Push(t.Context(), []uuid.UUID{user}, push(2)))
	require.Equal(t, user, h.next(t).user)
	stop()
	require.NoError(t, p.Push(t.Context(), []uuid.UUID{user}, push(3)))
	for range 2 {
		require.NotNil(t, <-bus)
	}
	require.NoError(t, conn.Flush())
	require.Empty(t, bus)
}

func TestLoopbackTellsTraces(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	loopback := realtime.NewLoopback()
	traced := make(chan realtime.Origin, 1)
	newHub(t, conn, realtime.SubscriberConfig{Loopback: loopback, Traced: func(_ uuid.UUID, _ []byte, origin realtime.Origin) {
		traced <- origin
	}})
	p := realtime.New(conn, loopback, testkit.Logger(t))
	ctx := trace.ContextWithSpanContext(t.Context(), call(trace.FlagsSampled))
	require.NoError(t, p.Push(ctx, []uuid.UUID{uuid.New()}, push(1)))
	require.Len(t, traced, 1)
	require.Equal(t, trace.TraceID{1}, (<-traced).Span.TraceID())
}
