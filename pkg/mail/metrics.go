package mail

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// The outcomes of mail_messages_total.
const (
	outcomeQueued     = "queued"
	outcomeSent       = "sent"
	outcomeFailed     = "failed"     // will be tried again
	outcomeRefused    = "refused"    // for good, by the mail server
	outcomeExpired    = "expired"    // of no more use
	outcomeUnreadable = "unreadable" // sealed with another key
)

type metrics struct {
	service  attribute.KeyValue
	messages metric.Int64Counter
	waiting  metric.Int64Gauge
}

// newMetrics cannot fail the queue: an instrument that cannot be made counts
// nothing, and is logged.
func newMetrics(service string, log *slog.Logger) *metrics {
	meter := otel.Meter("github.com/parleychat/parley/pkg/mail")
	m := &metrics{service: attribute.String("service", service)}
	var err error
	m.messages, err = meter.Int64Counter("mail_messages_total", metric.WithDescription("Mails, by template and outcome."))
	if err != nil {
		m.messages = noop.Int64Counter{}
		log.Error("metric cannot be made", "metric", "mail_messages_total", "error", err)
	}
	m.waiting, err = meter.Int64Gauge("mail_queue_messages", metric.WithDescription("Mails that wait in the queue."))
	if err != nil {
		m.waiting = noop.Int64Gauge{}
		log.Error("metric cannot be made", "metric", "mail_queue_messages", "error", err)
	}
	return m
}

func (m *metrics) count(ctx context.Context, template, outcome string) {
	m.messages.Add(ctx, 1, metric.WithAttributes(m.service, attribute.String("template", template), attribute.String("outcome", outcome)))
}

func (m *metrics) depth(ctx context.Context, n uint64) {
	m.waiting.Record(ctx, int64(n), metric.WithAttributes(m.service))
}
