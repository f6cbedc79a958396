package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Span is how much time one partition holds.
type Span int

// The spans. Partitions begin at midnight UTC, of the day or of the month's
// first.
const (
	Daily Span = iota
	Monthly
)

// Querier is what a Guard reads with: a pool or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Partitions keeps the range partitions of one table of the service's schema:
// made ahead, dropped when old, named <table>_p20250131 or <table>_p202501. The
// partition key is a timestamptz. There is no default partition, which would
// have to be scanned under a lock for each new one.
type Partitions struct {
	// Table is the partitioned table, unqualified.
	Table string
	Span  Span
	// Ahead is how far into the future partitions must exist; zero means seven
	// days for Daily, 62 days for Monthly.
	Ahead time.Duration
	// Keep is for how long after its end a partition stays; zero means forever.
	Keep time.Duration
	// Guard, if set, is asked before a partition is dropped, and once more when
	// nobody can write to it any longer. False keeps the partition, loudly.
	// partition is a quoted name to put into SQL.
	Guard func(ctx context.Context, db Querier, partition string) (droppable bool, err error)
}

// lockTimeout is how long DDL waits for a lock: behind it everybody else queues.
const lockTimeout = "2s"

// EnsurePartitions makes the partitions that now needs, of every table given.
// Call it before serving: without a partition an insert fails. It tries for a
// while when locks are in the way.
func EnsurePartitions(ctx context.Context, pool *pgxpool.Pool, now time.Time, parts ...Partitions) error {
	for _, p := range parts {
		if _, err := p.Ensure(ctx, pool, now); err != nil {
			return err
		}
	}
	return nil
}

// Ensure makes the partitions from the one before now up to Ahead, and returns
// until when inserts have a place. It is safe to call by several processes at
// once and after a crash at any point.
func (p Partitions) Ensure(ctx context.Context, pool *pgxpool.Pool, now time.Time) (until time.Time, err error) {
	for attempt := range 5 {
		until, err = p.ensure(ctx, pool, now)
		if err == nil || !hasCode(err, codeLockNotAvailable, codeDeadlock) {
			break
		}
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(time.Duration(attempt+1) * 200 * time.Millisecond):
		}
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("partitions of %s: %w", p.Table, err)
	}
	return until, nil
}

// Ends returns until when inserts have a place, from now on without a hole; now
// itself if they have none. It makes nothing and waits for no lock.
func (p Partitions) Ends(ctx context.Context, pool *pgxpool.Pool, now time.Time) (time.Time, error) {
	have, err := p.attached(ctx, pool)
	if err != nil {
		return time.Time{}, fmt.Errorf("partitions of %s: %w", p.Table, err)
	}
	until := now
	for from := p.floor(now); have[p.name(from)] == stateAttached; from = p.next(from) {
		until = p.next(from)
	}
	return until, nil
}

func (p Partitions) ensure(ctx context.Context, pool *pgxpool.Pool, now time.Time) (until time.Time, err error) {
	// The span before: another replica's clock may be behind, over midnight.
	first := p.floor(p.floor(now).Add(-time.Second))
	last := now.Add(p.ahead())
	have, err := p.attached(ctx, pool)
	if err != nil {
		return time.Time{}, err
	}
	complete := true
	for from := first; !from.After(last); from = p.next(from) {
		until = p.next(from)
		complete = complete && have[p.name(from)] != ""
	}
	if complete {
		return until, nil // the usual case takes no lock
	}
	// One transaction: a crash leaves no table that is made but not attached.
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '"+lockTimeout+"'"); err != nil {
			return err
		}
		// Against itself only: readers and writers go on. It is the lock that
		// ATTACH takes anyway; taken first it makes look and act one step.
		if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "+quote(p.Table)+" IN SHARE UPDATE EXCLUSIVE MODE"); err != nil {
			return err
		}
		have, err := p.attached(ctx, tx)
		if err != nil {
			return err
		}
		for from := first; !from.After(last); from = p.next(from) {
			if have[p.name(from)] != "" {
				continue
			}
			if err := p.attach(ctx, tx, from); err != nil {
				return err
			}
		}
		return nil
	})
	return until, err
}

// attach makes and attaches one partition. CREATE … PARTITION OF would lock the
// parent against everybody; CREATE and ATTACH does not.
func (p Partitions) attach(ctx context.Context, tx pgx.Tx, from time.Time) error {
	name := quote(p.name(from))
	create := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (LIKE %s INCLUDING ALL)", name, quote(p.Table))
	if _, err := tx.Exec(ctx, create); err != nil {
		return fmt.Errorf("create partition %s: %w", p.name(from), err)
	}
	if _, err := tx.Exec(ctx, p.attachSQL(from)); err != nil {
		return fmt.Errorf("attach partition %s: %w", p.name(from), err)
	}
	return nil
}

func (p Partitions) attachSQL(from time.Time) string {
	const layout = "2006-01-02 15:04:05+00"
	return fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')",
		quote(p.Table), quote(p.name(from)), from.UTC().Format(layout), p.next(from).UTC().Format(layout))
}

// The states of an existing partition.
const (
	stateAttached = "attached"
	statePending  = "pending" // DETACH CONCURRENTLY was cut off in the middle
)

// rowsQuerier is what attached needs: a pool or a transaction.
type rowsQuerier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// attached returns the partitions by name, with their state.
func (p Partitions) attached(ctx context.Context, db rowsQuerier) (map[string]string, error) {
	rows, err := db.Query(ctx, `
		SELECT c.relname, i.inhdetachpending
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = $1::text::regclass`, quote(p.Table))
	if err != nil {
		return nil, fmt.Errorf("list partitions: %w", err)
	}
	out := map[string]string{}
	var name string
	var pending bool
	_, err = pgx.ForEachRow(rows, []any{&name, &pending}, func() error {
		out[name] = stateAttached
		if pending {
			out[name] = statePending
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list partitions: %w", err)
	}
	return out, nil
}

// name is the partition's, by its lower bound.
func (p Partitions) name(from time.Time) string { return p.Table + "_p" + from.Format(p.layout()) }

func (p Partitions) layout() string {
	if p.Span == Monthly {
		return "200601"
	}
	return "20060102"
}

// from is the lower bound that a name tells; false if it is not a name of ours.
func (p Partitions) from(name string) (time.Time, bool) {
	suffix, ok := strings.CutPrefix(name, p.Table+"_p")
	if !ok {
		return time.Time{}, false
	}
	t, err := time.ParseInLocation(p.layout(), suffix, time.UTC)
	return t, err == nil
}

func (p Partitions) floor(t time.Time) time.Time {
	y, m, d := t.UTC().Date()
	if p.Span == Monthly {
		d = 1
	}
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

func (p Partitions) next(from time.Time) time.Time {
	if p.Span == Monthly {
		return from.AddDate(0, 1, 0)
	}
	return from.AddDate(0, 0, 1)
}

func (p Partitions) ahead() time.Duration {
	switch {
	case p.Ahead > 0:
		return p.Ahead
	case p.Span == Monthly:
		return 62 * 24 * time.Hour
	default:
		return 7 * 24 * time.Hour
	}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
