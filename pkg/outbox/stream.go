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
	ctx, cancel := context.WithTimeout(ctx, rebuildTime)
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
		now := o.clock.Now()
		n, err := unmark(ctx, tx, now.Add(-keep), now)
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

const (
	// rebuildTime bounds the unmarking of all kept rows.
	rebuildTime = 10 * time.Minute
	// unmarkSlice is how much time one statement unmarks: three days at once
	// would run into the role's statement_timeout.
	unmarkSlice = 10 * time.Minute
)

// unmark has all rows of since and later published again. now bounds the slices;
// the last one is open, for rows of a clock that is ahead.
func unmark(ctx context.Context, db execer, since, now time.Time) (rows int64, err error) {
	for from := since; ; from = from.Add(unmarkSlice) {
		var to *time.Time
		if end := from.Add(unmarkSlice); !end.After(now) {
			to = &end
		}
		tag, err := db.Exec(ctx, `
			UPDATE outbox SET published_at = NULL
			WHERE created_at >= $1 AND created_at < coalesce($2::timestamptz, 'infinity') AND published_at IS NOT NULL`, from, to)
		if err != nil {
			return rows, fmt.Errorf("unmark outbox rows: %w", err)
		}
		rows += tag.RowsAffected()
		if to == nil {
			return rows, nil
		}
	}
}
