package event

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// measure has the metrics nats_… tell of the connection until stop is called. They
// are read when somebody asks for the metrics.
func (b *Bus) measure() (stop func() error, err error) {
	meter := otel.Meter(scope)
	var errs [5]error
	var connected, waiting metric.Int64ObservableGauge
	var reconnects, messages, bytes metric.Int64ObservableCounter
	connected, errs[0] = meter.Int64ObservableGauge("nats_connected",
		metric.WithDescription("1 while the connection to NATS stands, else 0."))
	waiting, errs[1] = meter.Int64ObservableGauge("nats_publish_pending",
		metric.WithDescription("Messages of events that were sent and that JetStream has not acknowledged yet."))
	reconnects, errs[2] = meter.Int64ObservableCounter("nats_reconnects_total",
		metric.WithDescription("Times that the connection was lost and made again."))
	messages, errs[3] = meter.Int64ObservableCounter("nats_messages_total",
		metric.WithDescription("Messages over the connection, by direction: in, out."))
	bytes, errs[4] = meter.Int64ObservableCounter("nats_transferred_bytes_total", metric.WithUnit("By"),
		metric.WithDescription("Bytes of messages over the connection, by direction: in, out."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	of := attribute.String("client", b.cfg.Name)
	own := metric.WithAttributeSet(attribute.NewSet(of))
	in := metric.WithAttributeSet(attribute.NewSet(of, attribute.String("direction", "in")))
	out := metric.WithAttributeSet(attribute.NewSet(of, attribute.String("direction", "out")))
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		up := int64(0)
		if b.conn.IsConnected() {
			up = 1
		}
		s := b.conn.Stats()
		o.ObserveInt64(connected, up, own)
		o.ObserveInt64(waiting, int64(b.js.PublishAsyncPending()), own)
		o.ObserveInt64(reconnects, int64(min(s.Reconnects, 1<<62)), own)
		o.ObserveInt64(messages, int64(min(s.InMsgs, 1<<62)), in)
		o.ObserveInt64(messages, int64(min(s.OutMsgs, 1<<62)), out)
		o.ObserveInt64(bytes, int64(min(s.InBytes, 1<<62)), in)
		o.ObserveInt64(bytes, int64(min(s.OutBytes, 1<<62)), out)
		return nil
	}, connected, waiting, reconnects, messages, bytes)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return registration.Unregister, nil
}

// backlog is what a listener has before it, as it was when last asked for.
type backlog struct {
	consumer atomic.Pointer[jetstream.Consumer]
}

// measure keeps the metrics of the listeners' backlog and of their dead letters
// until ctx ends. Every replica tells the same numbers: they are the consumer's.
func (ls *Listeners) measure(ctx context.Context, consumers []*consumer) error {
	ticker := time.NewTicker(ls.opts.measureEvery)
	defer ticker.Stop()
	known := map[string]bool{}
	for _, c := range consumers {
		ls.bus.metrics.start(ctx, ls.service, c.l.Name)
	}
	for {
		ls.measureOnce(ctx, consumers, known)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// measureOnce adds to known whose letters it has counted. It leaves the last value of what cannot be asked for: without NATS
// nats_connected tells.
func (ls *Listeners) measureOnce(ctx context.Context, consumers []*consumer, known map[string]bool) {
	if !ls.bus.Connected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, c := range consumers {
		cons := c.state.consumer.Load()
		if cons == nil {
			continue
		}
		info, err := (*cons).Info(ctx)
		if err != nil {
			ls.log.DebugContext(ctx, "backlog of a listener is not known", "listener", c.l.Name, "error", err)
			continue
		}
		ls.bus.metrics.backlog(ctx, ls.service, c.l.Name, int64(min(info.NumPending, 1<<62))+int64(info.NumAckPending))
	}
	letters, err := ls.bus.countDead(ctx, ls.service)
	if err != nil {
		ls.log.DebugContext(ctx, "dead letters cannot be counted", "error", err)
		return
	}
	// Also those of listeners that an earlier release had: nobody else counts them.
	// One that was seen is told to the end, for the last value of a gauge stays.
	for _, c := range consumers {
		known[c.l.Name] = true
	}
	for listener := range letters {
		known[listener] = true
	}
	for listener := range known {
		ls.bus.metrics.letters(ctx, ls.service, listener, letters[listener])
	}
}

// countDead counts the dead letters of a service by listener.
func (b *Bus) countDead(ctx context.Context, service string) (map[string]int64, error) {
	prefix := "dead." + service + "."
	stream, err := b.js.Stream(ctx, deadStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil //nolint:nilnil // nothing was ever parked
	}
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(prefix+">"))
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	count := make(map[string]int64, len(info.State.Subjects))
	for subject, n := range info.State.Subjects {
		count[strings.TrimPrefix(subject, prefix)] = int64(min(n, 1<<62))
	}
	return count, nil
}
