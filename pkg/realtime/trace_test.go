package realtime_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/testkit"
)

// call is the step of a call whose trace is sampled, or not.
func call(flags trace.TraceFlags) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags,
	})
}

func TestOnlyPushesOfSampledCallsTellTheirTrace(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	type arrival struct {
		user   uuid.UUID
		origin realtime.Origin
	}
	traced := make(chan arrival, 10)
	h := newHub(t, conn, realtime.SubscriberConfig{Traced: func(user uuid.UUID, _ []byte, origin realtime.Origin) {
		traced <- arrival{user, origin}
	}})
	p := realtime.New(conn, nil, testkit.Logger(t))
	user := uuid.New()
	require.NoError(t, h.Subscribe(user))
	require.NoError(t, h.Flush(t.Context()))
	raw, err := conn.SubscribeSync(realtime.Subject(user))
	require.NoError(t, err)
	require.NoError(t, conn.Flush())

	for _, parent := range []trace.SpanContext{{}, call(0)} {
		require.NoError(t, p.Push(trace.ContextWithSpanContext(t.Context(), parent), []uuid.UUID{user}, push(1)))
		require.Equal(t, user, h.next(t).user)
		msg, err := raw.NextMsg(patience)
		require.NoError(t, err)
		require.Empty(t, msg.Header, "a call that is not sampled pays nothing")
	}
	before := time.Now()
	require.NoError(t, p.Push(trace.ContextWithSpanContext(t.Context(), call(trace.FlagsSampled)), []uuid.UUID{user}, push(2)))
	select {
	case a := <-traced:
		require.Equal(t, user, a.user)
		require.Equal(t, trace.TraceID{1}, a.origin.Span.TraceID())
		require.WithinRange(t, a.origin.Sent, before, time.Now())
	case <-time.After(patience):
		require.Fail(t, "no push came")
	}
	require.Empty(t, h.frames)
}

// TestStrangeHeadersChangeNothing: whatever stands in the headers of a push, the
// person gets it.
func TestStrangeHeadersChangeNothing(t *testing.T) {
	t.Parallel()
	conn := testkit.NATS(t).Connect(t)
	h := newHub(t, conn, realtime.SubscriberConfig{Traced: func(uuid.UUID, []byte, realtime.Origin) {
		t.Error("taken for a trace")
	}})
	user := uuid.New()
	require.NoError(t, h.Subscribe(user))
	require.NoError(t, h.Flush(t.Context()))
	const parent = "00-01000000000000000000000000000000-0200000000000000-01"
	for _, header := range []nats.Header{
		{"Other": {"1"}},
		{"traceparent": {parent}},
		{"traceparent": {parent}, "Parley-Sent": {"soon"}},
		{"traceparent": {"nonsense"}, "Parley-Sent": {"1"}},
		{"traceparent": {"00-01000000000000000000000000000000-0200000000000000-00"}, "Parley-Sent": {"1"}},
		{"traceparent": {parent, parent}, "Parley-Sent": {"1"}},
	} {
		frame, err := realtime.Encode(push(1))
		require.NoError(t, err)
		require.NoError(t, conn.PublishMsg(&nats.Msg{Subject: realtime.Subject(user), Header: header, Data: frame}))
		require.Equal(t, user, h.next(t).user)
	}
}
