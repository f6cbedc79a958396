package event_test

import (
	"context"
	"errors"
	"regexp"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// subjectOK is what NATS takes as a subject to publish on.
var subjectOK = regexp.MustCompile(`^[^\s.*>]+(\.[^\s.*>]+)*$`)

// FuzzEnvelope holds that bytes on a stream are an event or an error, that what
// passes Check can be published and read again, and that a listener's payload is
// of its type, wrong, or of a newer program, and never a panic.
func FuzzEnvelope(f *testing.F) {
	good := event.New("session.revoked", uuid.NewString(), 1, &authv1.SessionRevoked{SessionId: "s"})
	require.NoError(f, event.Complete(f.Context(), good, time.Unix(1, 2)))
	other := event.New("session.revoked", "k", 1, &authv1.AccountRegistered{AccountId: "a"})
	broken := proto.CloneOf(good)
	broken.Payload.Value = []byte{0xff}
	nameless := &eventv1.Event{Type: "a.b", Key: "k", Time: &timestamppb.Timestamp{Seconds: 1 << 62, Nanos: -1}, Payload: &anypb.Any{TypeUrl: "no/such"}}
	for _, ev := range []*eventv1.Event{good, other, broken, nameless, {}, {Type: "A.b", Key: "k"}, {Type: "a.>", Key: "k"}} {
		data, err := proto.Marshal(ev)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte{0xff})
	listener := event.On("auth", "session.revoked", event.ByVersion,
		func(_ context.Context, _ pgx.Tx, ev *eventv1.Event, payload *authv1.SessionRevoked) error {
			if !ev.GetPayload().MessageIs(payload) {
				return errors.New("a payload of another type")
			}
			return nil
		})
	f.Fuzz(func(t *testing.T, data []byte) {
		var events []*eventv1.Event
		var err error
		for _, header := range []nats.Header{{"Parley-Events": {"2"}}, nil} {
			testkit.Bounded(t, 1<<20+128*uint64(len(data)), func() { events, err = event.Read(header, data) })
			require.Equal(t, err == nil, len(events) > 0)
		}
		if err != nil {
			return
		}
		ev := events[0]
		handled := listener.Handle(t.Context(), nil, ev)
		parsed := &authv1.SessionRevoked{}
		switch ours := ev.GetPayload().MessageIs(parsed); {
		case !ours:
			require.ErrorIs(t, handled, event.ErrUnknownPayload)
		case proto.Unmarshal(ev.GetPayload().GetValue(), parsed) == nil:
			require.NoError(t, handled)
		default:
			require.Error(t, handled)
			require.NotErrorIs(t, handled, event.ErrUnknownPayload)
		}
		if event.Check(ev) != nil {
			return
		}
		require.Regexp(t, subjectOK, event.Subject("zoo", ev.GetType()))
		id, at, parent := ev.GetId(), ev.GetTime(), ev.GetTraceparent()
		require.NoError(t, event.Complete(t.Context(), ev, time.Unix(1, 0)))
		require.NotEmpty(t, ev.GetId())
		require.NotNil(t, ev.GetTime())
		if id != "" {
			require.Equal(t, id, ev.GetId())
		}
		if at != nil {
			require.True(t, proto.Equal(at, ev.GetTime()))
		}
		require.Equal(t, parent, ev.GetTraceparent(), "outside of a trace nothing is made up")
		again, err := proto.Marshal(ev)
		require.NoError(t, err)
		back := &eventv1.Event{}
		require.NoError(t, proto.Unmarshal(again, back))
		require.True(t, proto.Equal(ev, back))
	})
}

// FuzzTraceparent holds that a traceparent that came with an event or a call is
// taken whole or not at all, and goes on as it came.
func FuzzTraceparent(f *testing.F) {
	for _, parent := range []string{
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "00-", "", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
	} {
		f.Add(parent, "a=1,b=2;p=q")
	}
	f.Add("", "k="+string(make([]byte, 9000)))
	both := propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
	f.Fuzz(func(t *testing.T, parent, baggage string) {
		in, out := propagation.MapCarrier{"traceparent": parent, "baggage": baggage}, propagation.MapCarrier{}
		testkit.Bounded(t, 1<<20+256*uint64(len(parent)+len(baggage)), func() {
			both.Inject(both.Extract(t.Context(), in), out)
		})
		ctx := both.Extract(t.Context(), in)
		require.LessOrEqual(t, len(out["baggage"]), 8192, "W3C's limit of what is passed on")
		ev := event.New("thing.happened", "k", 1, nil)
		require.NoError(t, event.Complete(ctx, ev, time.Unix(1, 0)))
		require.Equal(t, out["traceparent"], ev.GetTraceparent())
		require.True(t, utf8.ValidString(ev.GetTraceparent()))
		span := trace.SpanContextFromContext(ctx)
		require.Equal(t, span.IsValid(), ev.GetTraceparent() != "")
		if span.IsValid() {
			require.Len(t, ev.GetTraceparent(), 55)
			require.Contains(t, parent, span.TraceID().String())
			back := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": ev.GetTraceparent()}))
			require.Equal(t, span.TraceID(), back.TraceID())
			require.Equal(t, span.SpanID(), back.SpanID())
		}
	})
}
