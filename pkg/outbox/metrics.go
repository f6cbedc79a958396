package outbox

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

type metrics struct {
	service   attribute.KeyValue
	pending   metric.Int64Gauge
	oldest    metric.Float64Gauge
	published metric.Int64Counter
	relayed   metric.Int64Counter
	leftRows  metric.Int64Counter
	broken    metric.Int64Gauge
}

// newMetrics cannot fail the outbox: an instrument that cannot be made counts
// nothing, and is logged.
func newMetrics(service string, log *slog.Logger) *metrics {
	meter := otel.Meter("github.com/parleychat/parley/pkg/outbox")
	m := &metrics{service: attribute.String("service", service)}
	var err error
	note := func(name string) {
		if err != nil {
			log.Error("metric cannot be made", "metric", name, "error", err)
		}
	}
	counter := func(name, description string) metric.Int64Counter {
		var c metric.Int64Counter
		if c, err = meter.Int64Counter(name, metric.WithDescription(description)); err != nil {
			c = noop.Int64Counter{}
		}
		note(name)
		return c
	}
	m.published = counter("outbox_published_total", "Events that JetStream has acknowledged.")
	m.relayed = counter("outbox_relay_rows_total", "Rows that the relay published.")
	m.leftRows = counter("outbox_left_rows_total", "Rows that the committing process left to the relay.")
	if m.broken, err = meter.Int64Gauge("outbox_broken_rows",
		metric.WithDescription("Rows that cannot be read; they wait for a person.")); err != nil {
		m.broken = noop.Int64Gauge{}
	}
	note("outbox_broken_rows")
	if m.pending, err = meter.Int64Gauge("outbox_pending_rows",
		metric.WithDescription("Rows that are not marked as published, without broken ones, counted up to 10000.")); err != nil {
		m.pending = noop.Int64Gauge{}
	}
	note("outbox_pending_rows")
	if m.oldest, err = meter.Float64Gauge("outbox_oldest_pending_seconds", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest row that is not marked as published.")); err != nil {
		m.oldest = noop.Float64Gauge{}
	}
	note("outbox_oldest_pending_seconds")
	return m
}

func (m *metrics) events(ctx context.Context, n int) {
	m.published.Add(ctx, int64(n), metric.WithAttributes(m.service))
}

func (m *metrics) relay(ctx context.Context, rows int) {
	m.relayed.Add(ctx, int64(rows), metric.WithAttributes(m.service))
}

func (m *metrics) left(ctx context.Context, rows int64) {
	m.leftRows.Add(ctx, rows, metric.WithAttributes(m.service))
}

func (m *metrics) waiting(ctx context.Context, rows int64, oldestSeconds float64, broken int) {
	m.broken.Record(ctx, int64(broken), metric.WithAttributes(m.service))
	m.pending.Record(ctx, rows, metric.WithAttributes(m.service))
	m.oldest.Record(ctx, oldestSeconds, metric.WithAttributes(m.service))
}
