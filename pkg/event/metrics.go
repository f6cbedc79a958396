package event

import (
	"context"
	"fmt"

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
	events metric.Int64Counter
	dead   metric.Int64Counter
}

func newMetrics() (*metrics, error) {
	meter := otel.Meter(scope)
	events, err := meter.Int64Counter("listener_events_total",
		metric.WithDescription("Events that listeners have had, by outcome."))
	if err != nil {
		return nil, fmt.Errorf("make metric: %w", err)
	}
	dead, err := meter.Int64Counter("listener_dead_letters_total",
		metric.WithDescription("Events parked as dead letters."))
	if err != nil {
		return nil, fmt.Errorf("make metric: %w", err)
	}
	return &metrics{events: events, dead: dead}, nil
}

func (m *metrics) count(ctx context.Context, service, listener, outcome string) {
	attrs := []attribute.KeyValue{attribute.String("service", service), attribute.String("listener", listener)}
	if outcome == outcomeParked {
		m.dead.Add(ctx, 1, metric.WithAttributes(attrs...))
	}
	m.events.Add(ctx, 1, metric.WithAttributes(append(attrs, attribute.String("outcome", outcome))...))
}
