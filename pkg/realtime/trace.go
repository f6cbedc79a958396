package realtime

import (
	"context"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// The headers of a push whose trace is sampled. All others have none: a message
// without headers is smaller and quicker to read.
const (
	headerTrace = "traceparent"
	headerSent  = "Parley-Sent"
)

// Origin is where a sampled push comes from.
type Origin struct {
	// Span is the step that published the push.
	Span trace.SpanContext
	// Sent is when it was published, by the publisher's clock.
	Sent time.Time
}

// header begins the span of a push whose call is sampled and gives the headers
// that tell of it; nil for all others, which pay for one look into ctx. end ends
// the span.
func header(ctx context.Context, receivers int) (h nats.Header, end func()) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil, nothing
	}
	now := time.Now()
	ctx, span := otel.Tracer("github.com/parleychat/parley/pkg/realtime").Start(ctx, "push",
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithTimestamp(now),
		trace.WithAttributes(attribute.Int("receivers", receivers)))
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	h = nats.Header{
		headerTrace: {carrier[headerTrace]},
		headerSent:  {strconv.FormatInt(now.UnixNano(), 10)},
	}
	return h, func() { span.End() }
}

func nothing() {}

// originOf reads what header wrote; ok is false for anything else, which is then
// a push like all others.
func originOf(ctx context.Context, h nats.Header) (origin Origin, ok bool) {
	parent, sent := h[headerTrace], h[headerSent]
	if len(parent) != 1 || len(sent) != 1 {
		return Origin{}, false
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{headerTrace: parent[0]})
	nanos, err := strconv.ParseInt(sent[0], 10, 64)
	origin = Origin{Span: trace.SpanContextFromContext(ctx), Sent: time.Unix(0, nanos)}
	return origin, err == nil && origin.Span.IsSampled()
}
