package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrGuarded says that at least one old partition was kept because its Guard
// refused. It needs a person: data that should have gone out is still there.
var ErrGuarded = errors.New("an old partition is still needed")

// Drop removes the partitions that ended more than Keep before now, oldest
// first, and returns their names. Writers of other partitions are not held up:
// DETACH CONCURRENTLY waits for readers instead of locking them out. A crash at
// any point is mended by the next call. The error wraps ErrGuarded if the Guard
// kept one; the others are dropped all the same.
func (p Partitions) Drop(ctx context.Context, pool *pgxpool.Pool, now time.Time) (dropped []string, err error) {
	if p.Keep <= 0 {
		return nil, nil
	}
	old, err := p.old(ctx, pool, now.Add(-p.Keep))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, part := range old {
		err := p.dropOne(ctx, pool, part)
		if err != nil {
			errs = append(errs, fmt.Errorf("drop partition %s: %w", part.name, err))
			continue
		}
		dropped = append(dropped, part.name)
	}
	return dropped, errors.Join(errs...)
}

// oldPartition is one that has passed its time. state is empty when it is
// detached already: a crash came between DETACH and DROP.
type oldPartition struct {
	name, state string
	from        time.Time
}

func (p Partitions) old(ctx context.Context, pool *pgxpool.Pool, before time.Time) ([]oldPartition, error) {
	states, err := p.attached(ctx, pool)
	if err != nil {
		return nil, err
	}
	rows, err := pool.Query(ctx, `
		SELECT c.relname FROM pg_class c
		WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $1::text::regclass)
		  AND c.relkind = 'r' AND starts_with(c.relname, $2)`, quote(p.Table), p.Table+"_p")
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	slices.Sort(names)
	var out []oldPartition
	for _, name := range names {
		from, ok := p.from(name)
		if ok && !p.next(from).After(before) {
			out = append(out, oldPartition{name: name, state: states[name], from: from})
		}
	}
	return out, nil
}

func (p Partitions) dropOne(ctx context.Context, pool *pgxpool.Pool, part oldPartition) error {
	table, name := quote(p.Table), quote(part.name)
	if part.state != "" {
		if err := p.ask(ctx, pool, name); err != nil {
			return err
		}
	}
	switch part.state {
	case stateAttached:
		// Outside a transaction, as it must be; the role's lock_timeout applies.
		if _, err := pool.Exec(ctx, "ALTER TABLE "+table+" DETACH PARTITION "+name+" CONCURRENTLY"); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	case statePending:
		if _, err := pool.Exec(ctx, "ALTER TABLE "+table+" DETACH PARTITION "+name+" FINALIZE"); err != nil {
			return fmt.Errorf("finish detaching: %w", err)
		}
	}
	// Between the first question and the detaching a writer with a clock far
	// behind may have come in. Now nobody can: the second answer is final.
	if err := p.ask(ctx, pool, name); err != nil {
		if _, aerr := pool.Exec(ctx, p.attachSQL(part.from)); aerr != nil {
			return errors.Join(err, fmt.Errorf("attach again: %w", aerr))
		}
		return err
	}
	if _, err := pool.Exec(ctx, "DROP TABLE IF EXISTS "+name); err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	return nil
}

func (p Partitions) ask(ctx context.Context, pool *pgxpool.Pool, name string) error {
	if p.Guard == nil {
		return nil
	}
	ok, err := p.Guard(ctx, pool, name)
	if err != nil {
		return fmt.Errorf("ask guard: %w", err)
	}
	if !ok {
		return ErrGuarded
	}
	return nil
}
