package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// keepStream sees to it that the stream of the domain exists, and fills it again
// from the table if it was lost.
func (o *Outbox) keepStream(ctx context.Context) {
	ticker := time.NewTicker(o.opts.streamCheck)
	defer ticker.Stop()
	for {
		if o.bus.Connected() {
			err := o.checkStream(ctx)
			if err == nil {
				err = o.refill(ctx)
			}
			if err != nil && ctx.Err() == nil {
				o.log.WarnContext(ctx, "stream of events will be looked after again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// checkStream compares the stream's time of creation with the one that the table
// outbox_stream remembers. Another one means that the stream is new and empty:
// whoever made it, the rows that are kept are to go out again. The row's lock makes
// one replica note it, and a crash before the commit leaves it to the next check.
func (o *Outbox) checkStream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	stream, err := o.bus.EnsureStream(ctx, o.service)
	if err != nil {
		return err
	}
	created := stream.CachedInfo().Created.UTC().Format(time.RFC3339Nano)
	o.mu.Lock()
	same := o.streamCreated == created
	o.mu.Unlock()
	if same {
		return nil
	}
	// Whatever the comparison says, from here on rows may go out.
	defer o.openGate()
	err = pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		var known string
		err := tx.QueryRow(ctx, `
			INSERT INTO outbox_stream (domain, created) VALUES ($1, '')
			ON CONFLICT (domain) DO UPDATE SET domain = excluded.domain
			RETURNING created`, o.service).Scan(&known)
		if err != nil {
			return fmt.Errorf("read known stream: %w", err)
		}
		if known == created {
			return nil
		}
		// What is committed later is published into this stream in any case. The newest
		// row may be of a clock that is ahead. The first stream of all lacks nothing.
		_, err = tx.Exec(ctx, `
			UPDATE outbox_stream SET created = $2, refill_at = $3, refill_id = $4,
				refill_until = CASE WHEN created <> '' THEN (SELECT max(created_at) FROM outbox) END
			WHERE domain = $1`, o.service, created, o.clock.Now().Add(-keep), uuid.Nil)
		if known != "" {
			o.log.WarnContext(ctx, "the stream of events is new: kept events are published again")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("compare stream with outbox: %w", err)
	}
	o.mu.Lock()
	o.streamCreated = created
	o.mu.Unlock()
	return nil
}

// refill publishes the kept rows once more if that is due, oldest first, at the pace
// of a relay. Marked or not: a mark may tell of the stream that was lost. What goes
// out twice has the same ids.
func (o *Outbox) refill(ctx context.Context) error {
	limiter := newLimiter(o.opts)
	for {
		rows, more, err := o.refillSome(ctx)
		if err != nil || !more {
			return err
		}
		if err := limiter.WaitN(ctx, rows); err != nil {
			return fmt.Errorf("pace the filling: %w", err)
		}
	}
}

// refillSome publishes the next rows and moves the cursor behind them, in one
// transaction: if the process dies in it, another one begins where it began. One
// replica does it at a time; the others see nothing due.
func (o *Outbox) refillSome(ctx context.Context) (rows int, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	err = pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		var at, until time.Time
		var id uuid.UUID
		err := tx.QueryRow(ctx, `
			SELECT refill_at, refill_id, refill_until FROM outbox_stream
			WHERE domain = $1 AND refill_until IS NOT NULL FOR UPDATE SKIP LOCKED`, o.service).Scan(&at, &id, &until)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the cursor: %w", err)
		}
		found, err := tx.Query(ctx, `
			SELECT id, created_at, envelopes, key_versions FROM outbox
			WHERE created_at >= $1 AND created_at <= $3 AND (created_at, id) > ($1, $2)
			ORDER BY created_at, id LIMIT $4`, at, id, until, o.opts.relayBatch)
		if err != nil {
			return fmt.Errorf("read kept rows: %w", err)
		}
		stored, err := pgx.CollectRows(found, pgx.RowToStructByPos[storedRow])
		if err != nil {
			return fmt.Errorf("read kept rows: %w", err)
		}
		if _, err := o.sendClaimed(ctx, o.read(ctx, stored)); err != nil {
			return err
		}
		if rows, more = len(stored), len(stored) == o.opts.relayBatch; more {
			last := stored[len(stored)-1]
			_, err = tx.Exec(ctx, `UPDATE outbox_stream SET refill_at = $2, refill_id = $3 WHERE domain = $1`, o.service, last.CreatedAt, last.ID)
		} else {
			o.log.InfoContext(ctx, "the stream of events holds what is kept again")
			_, err = tx.Exec(ctx, `UPDATE outbox_stream SET refill_at = NULL, refill_id = NULL, refill_until = NULL WHERE domain = $1`, o.service)
		}
		if err != nil {
			return fmt.Errorf("move the cursor: %w", err)
		}
		return nil
	})
	if err != nil {
		return 0, false, fmt.Errorf("fill the stream again: %w", err)
	}
	o.metrics.relay(ctx, rows)
	return rows, more, nil
}

// openGate lets rows be published: the stream was looked at once. Rows published
// before that look would count as those of a lost stream, and go out twice.
func (o *Outbox) openGate() { o.gateOnce.Do(func() { close(o.gate); o.nudge() }) }

// gateOpen tells whether rows may be published.
func (o *Outbox) gateOpen() bool {
	select {
	case <-o.gate:
		return true
	default:
		return false
	}
}

// checkTime bounds one look at the stream.
const checkTime = time.Minute
