package gateway

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/metric"

	"github.com/parleychat/parley/pkg/realtime"
)

// measure has the metrics of the sockets' queues read, until ctx ends, whenever
// somebody asks for the metrics. It looks at each socket then, a few milliseconds
// for a hundred thousand, so that a push pays nothing.
func (g *Gateway) measure(ctx context.Context, meter metric.Meter) error {
	for _, cause := range []realtime.Loss{realtime.LossReconnect, realtime.LossSlow, realtime.LossLate} {
		// An alert sees a rise, and a counter that begins at one has not risen.
		g.metrics.losses.Add(ctx, 0, g.metrics.with("cause", string(cause)))
	}
	var errs [3]error
	var bytes, longest, people metric.Int64ObservableGauge
	bytes, errs[0] = meter.Int64ObservableGauge("gateway_queued_bytes", metric.WithUnit("By"),
		metric.WithDescription("What waits to be written to sockets, over all of them."))
	longest, errs[1] = meter.Int64ObservableGauge("gateway_longest_queue_bytes", metric.WithUnit("By"),
		metric.WithDescription("What waits for the socket with most; at the limit a socket is closed."))
	people, errs[2] = meter.Int64ObservableGauge("gateway_people",
		metric.WithDescription("People with an authenticated socket here."))
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("make metrics: %w", err)
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		total, most := g.hub.queued()
		o.ObserveInt64(bytes, total)
		o.ObserveInt64(longest, most)
		o.ObserveInt64(people, g.hub.people())
		return nil
	}, bytes, longest, people)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	<-ctx.Done()
	if err := registration.Unregister(); err != nil {
		return fmt.Errorf("unregister metrics: %w", err)
	}
	return nil
}

// queued is what waits for all sockets, and for the one with most, in bytes.
func (h *hub) queued() (total, most int64) {
	h.each(func(c *connection) {
		c.mu.Lock()
		waiting := int64(c.queued)
		c.mu.Unlock()
		total += waiting
		most = max(most, waiting)
	})
	return total, most
}

// people counts who has an authenticated socket.
func (h *hub) people() int64 {
	var n int64
	for i := range h.users {
		s := &h.users[i]
		s.mu.RLock()
		n += int64(len(s.first))
		s.mu.RUnlock()
	}
	return n
}
