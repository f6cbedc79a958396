package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// windowRows is how many rows may wait for acknowledgements at once.
	windowRows = 1024
	// stallTime is how long the publisher is held up when too many events wait
	// for their acknowledgement, before it leaves a row to the relay.
	stallTime = 2 * time.Second
	// restTime is for how long the publisher lets rows gather when it has sent all that were there, so that it, NATS and
	// the acknowledgements have several to do at a time. A row that comes after a rest waits for nothing.
	restTime = 10 * time.Millisecond
	// markRows and markWait bound one UPDATE that marks. Nobody waits for it, and a
	// transaction for each row would cost as much as the sends themselves: so rows
	// gather for a moment. After a crash those of this moment are published again.
	markRows = 500
	markWait = 100 * time.Millisecond
	// drainTime is for how long, after the end of ctx, acknowledgements and
	// marks that are due may still come. What misses it is published twice.
	drainTime = 2 * time.Second
)

// Run publishes until ctx ends and returns nil. Rows that are then still queued
// wait in the table for the relay of another replica, or of the next start.
func (o *Outbox) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	sent := make(chan sentRow, windowRows)
	acked := make(chan Row, markRows)
	group.Go(func() error { defer close(sent); o.publish(ctx, sent); return nil })
	group.Go(func() error { defer close(acked); o.collect(ctx, sent, acked); return nil })
	group.Go(func() error { o.markAll(ctx, acked); return nil })
	group.Go(func() error { o.relay(ctx); return nil })
	group.Go(func() error { o.keepStream(ctx); return nil })
	return group.Wait()
}

// sentRow is a row whose events are on their way.
type sentRow struct {
	row     Row
	futures []jetstream.PubAckFuture
	err     error
}

// publish sends the rows of the queue, without waiting for acknowledgements, and rests between.
func (o *Outbox) publish(ctx context.Context, sent chan<- sentRow) {
	select {
	case <-o.gate:
	case <-ctx.Done():
	}
	for {
		select {
		case <-ctx.Done():
			o.abandonQueue()
			return
		case row := <-o.queue:
			s := sentRow{row: row}
			s.futures, s.err = o.send(row.events)
			sent <- s // collect reads until it is closed
		}
		if len(o.queue) == 0 {
			clock.Pause(ctx, restTime)
		}
	}
}

// abandonQueue leaves what is queued to the relay.
func (o *Outbox) abandonQueue() {
	for {
		select {
		case row := <-o.queue:
			o.release(row)
		default:
			return
		}
	}
}

// send publishes the events of one row asynchronously.
func (o *Outbox) send(events []*eventv1.Event) ([]jetstream.PubAckFuture, error) {
	messages, err := event.Messages(o.service, events)
	if err != nil {
		return nil, err
	}
	futures := make([]jetstream.PubAckFuture, 0, len(messages))
	for _, msg := range messages {
		f, err := o.bus.JetStream().PublishMsgAsync(msg,
			jetstream.WithExpectStream(event.StreamName(o.service)), jetstream.WithStallWait(stallTime))
		if err != nil {
			return futures, fmt.Errorf("publish %s: %w", msg.Subject, err)
		}
		futures = append(futures, f)
	}
	return futures, nil
}

// wait returns when every future is done. JetStream's own timeout ends each.
func wait(ctx context.Context, futures []jetstream.PubAckFuture) error {
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return fmt.Errorf("publish %s: %w", f.Msg().Subject, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// collect waits for the acknowledgements in the order of sending.
func (o *Outbox) collect(ctx context.Context, sent <-chan sentRow, acked chan<- Row) {
	ctx, cancel := drainContext(ctx)
	defer cancel()
	for s := range sent {
		err := s.err
		if err == nil {
			err = wait(ctx, s.futures)
		}
		if err != nil {
			o.log.WarnContext(ctx, "events are left to the relay", "row", s.row.ID, "error", err)
			o.release(s.row)
			o.left.Add(1)
			continue
		}
		o.metrics.events(ctx, len(s.row.events))
		acked <- s.row // markAll reads until it is closed
	}
}

// markAll marks rows whose events are all acknowledged, many at a time.
func (o *Outbox) markAll(ctx context.Context, acked <-chan Row) {
	ctx, cancel := drainContext(ctx)
	defer cancel()
	batch := make([]Row, 0, markRows)
	for first := range acked {
		batch = gather(append(batch[:0], first), acked)
		if err := o.mark(ctx, batch); err != nil {
			// They are published; the relay does it once more.
			o.log.WarnContext(ctx, "published rows could not be marked", "rows", len(batch), "error", err)
		}
		for _, row := range batch {
			o.release(row)
		}
	}
}

// gather adds what comes within a moment.
func gather(batch []Row, acked <-chan Row) []Row {
	timer := time.NewTimer(markWait)
	defer timer.Stop()
	for len(batch) < markRows {
		select {
		case row, ok := <-acked:
			if !ok {
				return batch
			}
			batch = append(batch, row)
		case <-timer.C:
			return batch
		}
	}
	return batch
}

// markSQL names the range of created_at first, so that only the partitions of
// these rows are looked at.
const markSQL = `
UPDATE outbox SET published_at = $1
FROM unnest($2::timestamptz[], $3::uuid[]) AS m (created_at, id)
WHERE outbox.created_at BETWEEN $4 AND $5
  AND outbox.created_at = m.created_at AND outbox.id = m.id
  AND outbox.published_at IS NULL`

// lazyCommitSQL has the transaction commit without waiting for the disk.
const lazyCommitSQL = `SELECT set_config('synchronous_commit', 'off', true)`

// mark does not wait for the disk: a mark that a crash of the database takes back
// has the relay publish the row once more, and listeners know it. So marks do not
// compete with sends for the flushes of the log. One batch is one transaction.
func (o *Outbox) mark(ctx context.Context, rows []Row) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	batch := &pgx.Batch{}
	batch.Queue(lazyCommitSQL)
	batch.Queue(markSQL, markArgs(o.clock.Now(), rows)...)
	if err := o.pool.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("mark outbox rows: %w", err)
	}
	return nil
}

func markArgs(now time.Time, rows []Row) []any {
	times := make([]time.Time, len(rows))
	ids := make([]uuid.UUID, len(rows))
	first, last := rows[0].CreatedAt, rows[0].CreatedAt
	for i, row := range rows {
		times[i], ids[i] = row.CreatedAt, row.ID
		if row.CreatedAt.Before(first) {
			first = row.CreatedAt
		}
		if row.CreatedAt.After(last) {
			last = row.CreatedAt
		}
	}
	return []any{now, times, ids, first, last}
}

// drainContext lives a moment longer than ctx.
func drainContext(ctx context.Context) (context.Context, context.CancelFunc) {
	drain, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(drainTime, func() { cancel(errDrained) })
	})
	return drain, func() { stop(); cancel(nil) }
}

var errDrained = errors.New("stopping: the time for draining is over")
