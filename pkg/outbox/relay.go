package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// claimTime bounds the transaction that holds claimed rows; the role's
	// idle_in_transaction_session_timeout (10 s) would end it otherwise.
	claimTime = 8 * time.Second
	// ackTime bounds the wait for acknowledgements within it.
	ackTime = 5 * time.Second
	// youngerThan is the age up to which recovered rows are told of: clients
	// that missed an older push have long asked by themselves.
	youngerThan = time.Minute
	// ahead is how far beyond ours a row's time must be before it counts as written
	// by a process with a wrong clock. Such a row would wait until our clock is
	// there, should its process die.
	ahead = time.Minute
)

// relay claims what nobody published: oldest first, at a rate that is capped for
// each replica.
func (o *Outbox) relay(ctx context.Context) {
	ticker := time.NewTicker(o.opts.poll)
	defer ticker.Stop()
	limiter := newLimiter(o.opts)
	var counted time.Time
	for {
		if o.bus.Connected() && o.gateOpen() {
			o.claimAll(ctx, limiter)
		}
		if n := o.left.Swap(0); n > 0 {
			o.metrics.left(ctx, n)
		}
		if time.Since(counted) >= o.opts.countEvery {
			counted = time.Now()
			o.count(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-o.wake:
		}
	}
}

// newLimiter is the pace of a relay.
func newLimiter(o options) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(relayRate), max(relayRate, o.relayBatch))
}

// claimAll claims until there is nothing left, or something fails.
func (o *Outbox) claimAll(ctx context.Context, limiter *rate.Limiter) {
	for ctx.Err() == nil {
		rows, err := o.claim(ctx)
		if err != nil {
			if ctx.Err() == nil {
				o.log.WarnContext(ctx, "relay will try again", "error", err)
			}
			return
		}
		o.tellYoung(ctx, rows)
		if len(rows) < o.opts.relayBatch {
			return
		}
		// Between transactions, not inside: nobody waits for our rows meanwhile.
		if err := limiter.WaitN(ctx, len(rows)); err != nil {
			return
		}
	}
}

// claimSQL takes rows that are not another relay's at this moment. The oldest
// come first; a row is a relay's only after a grace, and never while this very
// process is publishing it. A row of the future has no grace: nobody knows its
// age, and to publish it twice does no harm.
const claimSQL = `
SELECT id, created_at, envelopes, key_versions FROM outbox
WHERE published_at IS NULL AND (created_at <= $1 OR created_at > $4) AND id <> ALL ($2::uuid[])
ORDER BY created_at
LIMIT $3
FOR UPDATE SKIP LOCKED`

// claim publishes and marks one batch in one transaction: if the process dies in
// it, the rows are free again and unmarked.
func (o *Outbox) claim(ctx context.Context) (claimed []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	now := o.clock.Now()
	before := now.Add(-o.opts.grace)
	err = pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		claimed = nil
		rows, err := tx.Query(ctx, claimSQL, before, o.notToClaim(before, now.Add(ahead)), o.opts.relayBatch, now.Add(ahead))
		if err != nil {
			return fmt.Errorf("claim outbox rows: %w", err)
		}
		stored, err := pgx.CollectRows(rows, pgx.RowToStructByPos[storedRow])
		if err != nil {
			return fmt.Errorf("claim outbox rows: %w", err)
		}
		var sendErr error
		claimed, sendErr = o.sendClaimed(ctx, o.read(ctx, stored))
		if len(claimed) == 0 {
			return sendErr
		}
		if sendErr != nil {
			// The next batch begins with what is left of this one.
			o.log.WarnContext(ctx, "rows of a batch were not published, the relay will try again",
				"rows", len(stored)-len(claimed), "error", sendErr)
		}
		_, err = tx.Exec(ctx, markSQL, markArgs(o.clock.Now(), claimed)...)
		if err != nil {
			return fmt.Errorf("mark claimed rows: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	o.metrics.relay(ctx, len(claimed))
	return claimed, nil
}

type storedRow struct {
	ID          uuid.UUID
	CreatedAt   time.Time
	Envelopes   []byte
	KeyVersions []*int64
}

// read parses claimed rows.
func (o *Outbox) read(ctx context.Context, stored []storedRow) []Row {
	out := make([]Row, 0, len(stored))
	for _, s := range stored {
		row := Row{ID: s.ID, CreatedAt: s.CreatedAt}
		var err error
		if row.events, err = s.parse(); err != nil {
			o.setAside(ctx, row, err)
			continue
		}
		out = append(out, row)
	}
	return out
}

// parse gives the events that happened. One that no stream would take makes the
// row unreadable: tried again and again, it would hold up the rows after it.
func (s storedRow) parse() ([]*eventv1.Event, error) {
	var batch eventv1.EventBatch
	if err := proto.Unmarshal(s.Envelopes, &batch); err != nil {
		return nil, fmt.Errorf("parse events: %w", err)
	}
	events, err := complete(batch.GetEvents(), s.KeyVersions)
	if err != nil {
		return nil, err
	}
	for _, ev := range events {
		if err := event.Check(ev); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// setAside keeps a row that can never be published, unmarked and loud, and out of
// the way of the others.
func (o *Outbox) setAside(ctx context.Context, row Row, err error) {
	o.log.ErrorContext(ctx, "outbox row cannot be published and is kept", "row", row.ID, "created_at", row.CreatedAt, "error", err)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken[row.ID] = struct{}{}
}

// sendClaimed publishes the rows in order and returns those of which everything
// is acknowledged, and the error of the first other one that may pass.
func (o *Outbox) sendClaimed(ctx context.Context, rows []Row) (done []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, ackTime)
	defer cancel()
	sent := make([]sentRow, len(rows))
	for i, row := range rows {
		sent[i].row = row
		sent[i].futures, sent[i].err = o.send(row.events)
	}
	for _, s := range sent {
		rowErr := s.err
		if rowErr == nil {
			rowErr = wait(ctx, s.futures)
		}
		switch {
		case rowErr == nil:
			o.metrics.events(ctx, len(s.row.events))
			done = append(done, s.row)
		case errors.Is(rowErr, nats.ErrMaxPayload), errors.Is(rowErr, jetstream.ErrStreamMessageExceedsMaximum):
			o.setAside(ctx, s.row, rowErr)
		case err == nil:
			err = rowErr
		}
	}
	return done, err
}

// notToClaim are the rows that this process is publishing, and the broken ones.
func (o *Outbox) notToClaim(before, after time.Time) []uuid.UUID {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := slices.AppendSeq([]uuid.UUID{}, maps.Keys(o.broken)) // an empty list, not NULL
	for id, at := range o.inFlight {
		if !at.After(before) || at.After(after) {
			out = append(out, id)
		}
	}
	return out
}

// tellYoung tells of young rows, after their commit and outside of it: what it does
// is a hint to clients, and may be lost.
func (o *Outbox) tellYoung(ctx context.Context, rows []Row) {
	if o.opts.recovered == nil {
		return
	}
	limit := o.clock.Now().Add(-youngerThan)
	for _, row := range rows {
		if row.CreatedAt.After(limit) && len(row.events) > 0 {
			o.opts.recovered(ctx, row.events)
		}
	}
}

// count measures the backlog. Broken rows are not of it: they would stay its oldest
// for ever, and hide that the others wait.
func (o *Outbox) count(ctx context.Context) {
	var n int64
	var oldest *time.Time
	broken, err := o.stillBroken(ctx)
	if err == nil {
		err = o.pool.QueryRow(ctx, `
			SELECT count(*), min(created_at) FROM
			(SELECT created_at FROM outbox WHERE published_at IS NULL AND id <> ALL ($1::uuid[])
			ORDER BY created_at LIMIT 10000) AS waiting`, broken).Scan(&n, &oldest)
	}
	if err != nil {
		if ctx.Err() == nil {
			o.log.WarnContext(ctx, "backlog of the outbox could not be counted", "error", err)
		}
		return
	}
	age := 0.0
	if oldest != nil {
		age = max(0, o.clock.Now().Sub(*oldest).Seconds())
	}
	o.metrics.waiting(ctx, n, age, len(broken))
}

// stillBroken are the broken rows that nobody has marked or removed since. The
// others are forgotten.
func (o *Outbox) stillBroken(ctx context.Context) ([]uuid.UUID, error) {
	o.mu.Lock()
	known := slices.Collect(maps.Keys(o.broken))
	o.mu.Unlock()
	if len(known) == 0 {
		return []uuid.UUID{}, nil
	}
	rows, err := o.pool.Query(ctx, `SELECT id FROM outbox WHERE published_at IS NULL AND id = ANY ($1::uuid[])`, known)
	if err != nil {
		return nil, fmt.Errorf("look for broken rows: %w", err)
	}
	still, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("look for broken rows: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range known {
		if !slices.Contains(still, id) {
			delete(o.broken, id)
		}
	}
	return still, nil
}

// nudge wakes the relay.
func (o *Outbox) nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
