// Package outbox publishes events exactly when the change that they tell of is
// committed.
//
// It owns: the table outbox of a service (one row per transaction that emitted
// something, with all its events), the publisher that sends rows on as soon as
// they are committed, and the relay that claims the rows which a crash, a full
// queue or an outage left.
//
// Invariants: no event before its commit, none lost after it; a caller is never
// refused and never held up because NATS is away; memory is bounded: what has no
// room waits in the table. An event may be published twice, by a relay that
// takes over from a process that was only slow: its id is the same.
//
// It never orders events, and never decides by time which of two is newer.
package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/postgres"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// Outbox is the outbox of one service. It is safe for concurrent use.
type Outbox struct {
	pool    *pgxpool.Pool
	bus     *event.Bus
	service string
	clock   clock.Clock
	log     *slog.Logger
	opts    options
	metrics *metrics

	queue chan Row
	wake  chan struct{}
	gate  chan struct{} // closed once the stream was looked at
	left  atomic.Int64  // rows left to the relay, not yet added to the metric

	gateOnce sync.Once

	mu            sync.Mutex
	inFlight      map[uuid.UUID]time.Time // own rows between commit and mark, by created_at
	queuedBytes   int
	broken        map[uuid.UUID]struct{} // rows that cannot be read: logged once, kept for a person
	streamCreated string                 // the stream that the table is known to have filled
	since         time.Time              // partitions are known to exist from here
	until         time.Time              // and up to here

	prepare sync.Mutex // one at a time makes partitions
}

// New makes the outbox of a service. Call Prepare before the first row, and Run
// to have rows published.
func New(pool *pgxpool.Pool, bus *event.Bus, service string, c clock.Clock, log *slog.Logger, opts ...Option) *Outbox {
	o := defaults()
	for _, opt := range opts {
		opt(&o)
	}
	return &Outbox{
		pool: pool, bus: bus, service: service, clock: c, log: log, opts: o,
		metrics:  newMetrics(service, log),
		queue:    make(chan Row, o.queueRows),
		wake:     make(chan struct{}, 1),
		gate:     make(chan struct{}),
		inFlight: map[uuid.UUID]time.Time{},
		broken:   map[uuid.UUID]struct{}{},
	}
}

// Row is one row of the table outbox. ID, CreatedAt and Envelopes are what a
// statement of the caller's own inserts (columns id, created_at, envelopes).
type Row struct {
	ID        uuid.UUID
	CreatedAt time.Time
	// Envelopes is a serialized eventv1.EventBatch.
	Envelopes []byte

	events []*eventv1.Event
}

// insertSQL writes one row. key_versions stays NULL: the versions are known.
const insertSQL = `INSERT INTO outbox (id, created_at, envelopes) VALUES ($1, $2, $3)`

// Tx runs fn in a transaction. What fn emits is written to the outbox in the
// same transaction, as one row, and published after its commit; without events
// there is no row. If fn fails, nothing has happened. If the commit fails because
// the connection broke, its outcome is unknown; if it was committed, the relay
// publishes the events.
//
// The events belong to the outbox from then on.
func (o *Outbox) Tx(ctx context.Context, fn func(tx pgx.Tx, emit func(events ...*eventv1.Event) error) error) error {
	if err := o.cover(ctx); err != nil {
		return err
	}
	var row Row
	err := pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		var events []*eventv1.Event
		emit := func(more ...*eventv1.Event) error {
			for _, ev := range more {
				if err := event.Check(ev); err != nil {
					return err
				}
			}
			events = append(events, more...)
			return nil
		}
		if err := fn(tx, emit); err != nil {
			return err
		}
		if len(events) == 0 {
			return nil
		}
		var err error
		if row, err = o.row(ctx, events); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, insertSQL, row.ID, row.CreatedAt, row.Envelopes); err != nil {
			return fmt.Errorf("insert into outbox: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if row.events != nil {
		o.Committed(row, nil)
	}
	return nil
}

// Row prepares the row of a transaction that the caller writes by a statement of
// its own. The events belong to the outbox from then on.
func (o *Outbox) Row(ctx context.Context, events []*eventv1.Event) (Row, error) {
	if err := o.cover(ctx); err != nil {
		return Row{}, err
	}
	for _, ev := range events {
		if err := event.Check(ev); err != nil {
			return Row{}, err
		}
	}
	return o.row(ctx, events)
}

func (o *Outbox) row(ctx context.Context, events []*eventv1.Event) (Row, error) {
	now := o.clock.Now().Truncate(time.Microsecond) // what the column keeps
	for _, ev := range events {
		if err := event.Complete(ctx, ev, now); err != nil {
			return Row{}, err
		}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Row{}, fmt.Errorf("make outbox id: %w", err)
	}
	data, err := proto.Marshal(&eventv1.EventBatch{Events: events})
	if err != nil {
		return Row{}, fmt.Errorf("serialize events: %w", err)
	}
	return Row{ID: id, CreatedAt: now, Envelopes: data, events: events}, nil
}

// Committed hands a row to the publisher, after the transaction that wrote it is
// committed. keyVersions is what that statement put into key_versions: nil for
// NULL; otherwise aligned with the events of the row, and nil for an event that
// did not happen. It never blocks and never fails: a row that is not handed over
// (a crash, a full queue) is the relay's.
func (o *Outbox) Committed(row Row, keyVersions []*int64) {
	events, err := complete(row.events, keyVersions)
	if err != nil {
		o.log.Error("outbox row is left to the relay", "row", row.ID, "error", err)
		return
	}
	row.events = events
	if !o.bus.Connected() || !o.admit(row) {
		o.left.Add(1)
		return
	}
	select {
	case o.queue <- row:
	default:
		o.release(row)
		o.left.Add(1)
	}
}

// complete applies key_versions to the events of a batch.
func complete(events []*eventv1.Event, keyVersions []*int64) ([]*eventv1.Event, error) {
	if keyVersions == nil {
		return events, nil
	}
	if len(keyVersions) != len(events) {
		return nil, fmt.Errorf("%d key versions for %d events", len(keyVersions), len(events))
	}
	happened := make([]*eventv1.Event, 0, len(events))
	for i, v := range keyVersions {
		if v == nil {
			continue
		}
		events[i].KeyVersion = *v
		happened = append(happened, events[i])
	}
	return happened, nil
}

// admit notes an own row as in flight, so that the own relay leaves it alone.
// False says that there is no room.
func (o *Outbox) admit(row Row) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.queuedBytes+len(row.Envelopes) > o.opts.queueBytes {
		return false
	}
	o.queuedBytes += len(row.Envelopes)
	o.inFlight[row.ID] = row.CreatedAt
	return true
}

// release forgets a row that is marked, or left to the relay.
func (o *Outbox) release(row Row) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.inFlight[row.ID]; ok {
		delete(o.inFlight, row.ID)
		o.queuedBytes -= len(row.Envelopes)
	}
}

// Partitions are those of the table outbox: daily, a week ahead, kept for three
// days (Keep), and not dropped while a row is unmarked.
func (o *Outbox) Partitions() postgres.Partitions {
	return postgres.Partitions{
		Table: "outbox", Span: postgres.Daily, Keep: keep,
		Guard: func(ctx context.Context, db postgres.Querier, partition string) (bool, error) {
			var left bool
			err := db.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+partition+" WHERE published_at IS NULL)").Scan(&left)
			return !left, err
		},
	}
}

// Prepare makes the partitions that the present needs. Call it at the start,
// before serving; package job keeps it up (job.Partitions).
func (o *Outbox) Prepare(ctx context.Context) error {
	o.prepare.Lock()
	defer o.prepare.Unlock()
	now := o.clock.Now()
	until, err := o.Partitions().Ensure(ctx, o.pool, now)
	if err != nil {
		return fmt.Errorf("prepare outbox: %w", err)
	}
	o.mu.Lock()
	o.since, o.until = now.Truncate(24*time.Hour), until
	o.mu.Unlock()
	return nil
}

// cover sees to it that a row of now has a partition. It does something only if
// the job that should have made it did not run for a week, or if the clock
// jumped.
func (o *Outbox) cover(ctx context.Context) error {
	now := o.clock.Now()
	o.mu.Lock()
	covered := now.Before(o.until) && !now.Before(o.since)
	o.mu.Unlock()
	if covered {
		return nil
	}
	return o.Prepare(ctx)
}
