package messaging

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/parleychat/parley/pkg/cache"
)

// scope names the instruments and spans of this package.
const scope = "github.com/parleychat/parley/services/messaging"

// metrics are the instruments of the service. Names end up as
// messaging_batch_size, messaging_commit_seconds and so on.
type metrics struct {
	batchSize     metric.Int64Histogram
	commitSeconds metric.Float64Histogram
	sends         metric.Int64Counter
	syncBatch     metric.Int64Histogram
	flushedMarks  metric.Int64Counter
	pushFailures  metric.Int64Counter
	members       cache.Counter // questions who is a member, answered from receipts.known
	queueDepth    metric.Int64ObservableGauge
	bySend        [outcomeFailed + 1]metric.MeasurementOption
}

// newMetrics makes the instruments.
func newMetrics() (*metrics, error) {
	meter := otel.Meter(scope)
	m := &metrics{}
	for o := range m.bySend {
		m.bySend[o] = metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcome(o).String())))
	}
	var errs [8]error
	m.batchSize, errs[0] = meter.Int64Histogram("messaging_batch_size",
		metric.WithDescription("Sends in one group commit."),
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256))
	m.commitSeconds, errs[1] = meter.Float64Histogram("messaging_commit_seconds",
		metric.WithDescription("From the start of a group commit to the end of its pushes."),
		metric.WithExplicitBucketBoundaries(.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 5))
	m.sends, errs[2] = meter.Int64Counter("messaging_sends_total",
		metric.WithDescription("Sends that were judged, by outcome; doubles in one batch count once."))
	m.syncBatch, errs[3] = meter.Int64Histogram("messaging_sync_batch_size",
		metric.WithDescription("Syncs answered by one query."),
		metric.WithExplicitBucketBoundaries(1, 4, 16, 64, 256, 512))
	m.flushedMarks, errs[4] = meter.Int64Counter("messaging_receipt_marks_total",
		metric.WithDescription("Watermarks that rose in a flush."))
	m.pushFailures, errs[5] = meter.Int64Counter("messaging_push_failures_total",
		metric.WithDescription("Pushes that did not reach the bus; the receivers repair by Sync."))
	m.queueDepth, errs[6] = meter.Int64ObservableGauge("messaging_queue_depth",
		metric.WithDescription("Sends that wait for a group commit."))
	m.members, errs[7] = cache.NewCounter("messaging.member")
	return m, errors.Join(errs[:]...)
}

func (m *metrics) batch(ctx context.Context, size int, took time.Duration) {
	m.batchSize.Record(ctx, int64(size))
	m.commitSeconds.Record(ctx, took.Seconds())
}

func (m *metrics) send(ctx context.Context, o outcome) { m.sends.Add(ctx, 1, m.bySend[o]) }

// observe reads depth for messaging_queue_depth until ctx ends.
func (m *metrics) observe(ctx context.Context, depth func() int64) error {
	// An alert sees a rise, and a counter that begins at one has not risen.
	m.pushFailures.Add(ctx, 0)
	for o := outcomeAppended; o <= outcomeFailed; o++ {
		m.sends.Add(ctx, 0, m.bySend[o])
	}
	registration, err := otel.Meter(scope).RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(m.queueDepth, depth())
		return nil
	}, m.queueDepth)
	if err != nil {
		return fmt.Errorf("register messaging_queue_depth: %w", err)
	}
	<-ctx.Done()
	if err := registration.Unregister(); err != nil {
		return fmt.Errorf("unregister messaging_queue_depth: %w", err)
	}
	return nil
}
