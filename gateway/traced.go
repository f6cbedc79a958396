package gateway

import (
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/realtime"
)

// What the steps of the gateway say in traces; made once, because every call
// hands them over, sampled or not.
var (
	ofSocketCall = trace.WithAttributes(attribute.String("service", "gateway"), attribute.String("transport", "socket"))
	ofHTTPCall   = trace.WithAttributes(attribute.String("service", "gateway"), attribute.String("transport", "http"))
	ofDelivery   = trace.WithAttributes(attribute.String("service", "gateway"))
)

// deliverTraced is deliver for a push whose trace is sampled. It is not shared
// through the cache: each of its deliveries is a step of the trace.
func (h *hub) deliverTraced(user uuid.UUID, payload []byte, origin realtime.Origin) {
	p := &prepared{payload: payload, at: time.Now(), origin: &origin}
	p.kind, p.soft = classify(payload)
	s := &h.users[shardOf(user)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	for c := s.first[user]; c != nil; c = c.nextOfUser {
		c.push(p)
	}
}

// delivered ends the way of a sampled push: from its arrival here to its write to
// a socket, which has just happened.
func (g *Gateway) delivered(item *outgoing) {
	now := time.Now()
	_, span := g.tracer.Start(trace.ContextWithRemoteSpanContext(g.base, item.origin.Span), "deliver",
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(item.at), ofDelivery)
	span.End(trace.WithTimestamp(now))
	g.metrics.message.Record(g.base, max(0, now.Sub(item.origin.Sent).Seconds()))
}

// newMessageDelivery measures the promise of realtime delivery by the sampled
// pushes, so that the others carry no time.
func newMessageDelivery(meter metric.Meter) (metric.Float64Histogram, error) {
	return meter.Float64Histogram("gateway_message_delivery", metric.WithUnit("s"), //nolint:wrapcheck // wrapped with the others
		metric.WithDescription("Time from the sending of a push by its service to its write to a socket, of pushes that are sampled for traces."),
		metric.WithExplicitBucketBoundaries(.0003, .001, .003, .005, .01, .02, .05, .1, .3, 1, 3, 10))
}
