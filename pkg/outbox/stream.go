package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// keepStream sees to it that the stream of the domain exists, and fills it again
// from the table if it was lost.
func (o *Outbox) keepStream(ctx context.Context) {
	ticker := time.NewTicker(o.opts.streamCheck)
	defer ticker.Stop()
	for {
		if o.bus.Connected() {
			if err := o.checkStream(ctx); err != nil && ctx.Err() == nil {
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
// whoever made it, the rows that are kept go out again. The row's lock makes one
// replica do it, and a crash before the commit leaves all of it to the next check.
func (o *Outbox) checkStream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
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
		n, err := unmark(ctx, tx, o.clock.Now().Add(-o.opts.keep))
		if err != nil {
			return err
		}
		if n > 0 {
			o.log.WarnContext(ctx, "the stream of events is new: kept events are published again", "rows", n)
		}
		_, err = tx.Exec(ctx, `UPDATE outbox_stream SET created = $2 WHERE domain = $1`, o.service, created)
		return err
	})
	if err != nil {
		return fmt.Errorf("compare stream with outbox: %w", err)
	}
	o.mu.Lock()
	o.streamCreated = created
	o.mu.Unlock()
	o.openGate()
	o.nudge()
	return nil
}

// openGate lets rows be published: the stream was looked at once. Rows published
// before that look would count as those of a lost stream, and go out twice.
func (o *Outbox) openGate() { o.gateOnce.Do(func() { close(o.gate) }) }

// gateOpen tells whether rows may be published.
func (o *Outbox) gateOpen() bool {
	select {
	case <-o.gate:
		return true
	default:
		return false
	}
}

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Republish has the relay publish again every kept row since that time, for a
// stream that was damaged or restored from an old copy. Listeners do nothing
// twice. It returns the number of rows.
func (o *Outbox) Republish(ctx context.Context, since time.Time) (rows int64, err error) {
	rows, err = unmark(ctx, o.pool, since)
	if err == nil {
		o.nudge()
	}
	return rows, err
}

func unmark(ctx context.Context, db execer, since time.Time) (int64, error) {
	tag, err := db.Exec(ctx, `UPDATE outbox SET published_at = NULL WHERE created_at >= $1 AND published_at IS NOT NULL`, since)
	if err != nil {
		return 0, fmt.Errorf("unmark outbox rows: %w", err)
	}
	return tag.RowsAffected(), nil
}
