package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/parleychat/parley/pkg/event"

// The outcomes of listener_events_total.
const (
	outcomeDone        = "done"
	outcomeDuplicate   = "duplicate"
	outcomeFailed      = "failed"      // will be tried again, and counts
	outcomeUnavailable = "unavailable" // will be tried again, does not count
	outcomeUnknown     = "unknown"     // a payload for a newer replica
	outcomeParked      = "parked"
)

type metrics struct {
	events  metric.Int64Counter
	dead    metric.Int64Counter
	delay   metric.Float64Histogram
	pending metric.Int64Gauge
	parked  metric.Int64Gauge
}

func newMetrics() (*metrics, error) {
	meter := otel.Meter(scope)
	m := &metrics{}
	var errs [5]error
	m.events, errs[0] = meter.Int64Counter("listener_events_total",
		metric.WithDescription("Events that listeners have had, by outcome."))
	m.dead, errs[1] = meter.Int64Counter("listener_dead_letters_total",
		metric.WithDescription("Events parked as dead letters."))
	m.delay, errs[2] = meter.Float64Histogram("listener_delay_seconds", metric.WithUnit("s"),
		metric.WithDescription("From an event to its effect, of those that had their effect."),
		metric.WithExplicitBucketBoundaries(.005, .02, .05, .1, .5, 1, 5, 30, 120, 600, 3600))
	m.pending, errs[3] = meter.Int64Gauge("listener_pending_events",
		metric.WithDescription("Messages, of one or more events, that a listener has before it, those under way included; asked for every 15 s."))
	m.parked, errs[4] = meter.Int64Gauge("dead_letters_stored",
		metric.WithDescription("Dead letters that wait for a person; asked for every 15 s."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	return m, nil
}

func ofListener(service, listener string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("service", service), attribute.String("listener", listener))
}

// start begins the counters whose first step matters: an alert sees a rise, and a
// counter that begins at one has not risen.
func (m *metrics) start(ctx context.Context, service, listener string) {
	m.dead.Add(ctx, 0, ofListener(service, listener))
	for _, outcome := range []string{outcomeDone, outcomeDuplicate, outcomeFailed, outcomeUnavailable, outcomeUnknown, outcomeParked} {
		m.events.Add(ctx, 0, metric.WithAttributes(attribute.String("service", service),
			attribute.String("listener", listener), attribute.String("outcome", outcome)))
	}
}

func (m *metrics) backlog(ctx context.Context, service, listener string, events int64) {
	m.pending.Record(ctx, events, ofListener(service, listener))
}

func (m *metrics) letters(ctx context.Context, service, listener string, letters int64) {
	m.parked.Record(ctx, letters, ofListener(service, listener))
}

func (m *metrics) took(ctx context.Context, service, listener string, delay time.Duration) {
	m.delay.Record(ctx, max(0, delay.Seconds()), ofListener(service, listener))
}

func (m *metrics) count(ctx context.Context, service, listener, outcome string) {
	attrs := []attribute.KeyValue{attribute.String("service", service), attribute.String("listener", listener)}
	if outcome == outcomeParked {
		m.dead.Add(ctx, 1, metric.WithAttributes(attrs...))
	}
	m.events.Add(ctx, 1, metric.WithAttributes(append(attrs, attribute.String("outcome", outcome))...))
}
