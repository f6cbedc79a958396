package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
)

// ledger makes a partitioned table of its own.
func ledger(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := open(t, testkit.NewDatabase(t, testkit.Schema{Service: "alpha"}).URL("alpha"))
	_, err := pool.Exec(t.Context(), `
		CREATE TABLE ledger (at timestamptz NOT NULL, id int NOT NULL, open boolean NOT NULL DEFAULT false, PRIMARY KEY (at, id))
		PARTITION BY RANGE (at);
		CREATE INDEX ledger_open ON ledger (at) WHERE open`)
	require.NoError(t, err)
	return pool
}

func insert(ctx context.Context, pool *pgxpool.Pool, at time.Time, open bool) error {
	_, err := pool.Exec(ctx, `INSERT INTO ledger (at, id, open) VALUES ($1, 1, $2)`, at, open)
	return err
}

func partitionNames(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'ledger_p%' ORDER BY 1`)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour

	t.Run("ManyAtOnceMakeThemAhead", func(t *testing.T) {
		t.Parallel()
		pool := ledger(t)
		p := postgres.Partitions{Table: "ledger", Span: postgres.Daily}
		group, ctx := errgroup.WithContext(t.Context())
		for range 4 {
			group.Go(func() error {
				until, err := p.Ensure(ctx, pool, noon)
				if err == nil && until.Before(noon.Add(7*day)) {
					t.Errorf("runway ends %s", until)
				}
				return err
			})
		}
		require.NoError(t, group.Wait())
		require.Len(t, partitionNames(t, pool), 9) // yesterday, today, a week
		for _, d := range []time.Duration{-day, 0, 7 * day} {
			require.NoError(t, insert(t.Context(), pool, noon.Add(d), false))
		}
		require.Error(t, insert(t.Context(), pool, noon.Add(9*day), false), "there is no default partition")
	})

	t.Run("Monthly", func(t *testing.T) {
		t.Parallel()
		pool := ledger(t)
		p := postgres.Partitions{Table: "ledger", Span: postgres.Monthly}
		require.NoError(t, postgres.EnsurePartitions(t.Context(), pool, noon, p))
		require.Equal(t, []string{"ledger_p202702", "ledger_p202703", "ledger_p202704", "ledger_p202705"}, partitionNames(t, pool))
	})

	t.Run("OldOnesAreDroppedAndGuardedOnesKept", func(t *testing.T) {
		t.Parallel()
		pool := ledger(t)
		p := postgres.Partitions{Table: "ledger", Span: postgres.Daily, Keep: 2 * day, Guard: guardOpen}
		_, err := p.Ensure(t.Context(), pool, noon)
		require.NoError(t, err)
		require.NoError(t, insert(t.Context(), pool, noon, true))
		require.NoError(t, insert(t.Context(), pool, noon.Add(day), false))

		dropped, err := p.Drop(t.Context(), pool, noon.Add(4*day))
		require.ErrorIs(t, err, postgres.ErrGuarded)
		require.Equal(t, []string{"ledger_p20270313", "ledger_p20270315"}, dropped)

		_, err = pool.Exec(t.Context(), `UPDATE ledger SET open = false`)
		require.NoError(t, err)
		dropped, err = p.Drop(t.Context(), pool, noon.Add(4*day))
		require.NoError(t, err)
		require.Equal(t, []string{"ledger_p20270314"}, dropped)
	})

	t.Run("ALateRowBringsAPartitionBack", func(t *testing.T) {
		t.Parallel()
		pool := ledger(t)
		asked := 0
		p := postgres.Partitions{Table: "ledger", Span: postgres.Daily, Keep: day, Guard: func(ctx context.Context, db postgres.Querier, name string) (bool, error) {
			// Between the two questions a writer with a clock far behind comes.
			if asked++; asked == 1 {
				return true, insert(ctx, pool, noon.Add(-day), true)
			}
			return guardOpen(ctx, db, name)
		}}
		_, err := p.Ensure(t.Context(), pool, noon)
		require.NoError(t, err)
		_, err = p.Drop(t.Context(), pool, noon.Add(day+time.Hour))
		require.ErrorIs(t, err, postgres.ErrGuarded)
		var n int
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM ledger WHERE open`).Scan(&n))
		require.Equal(t, 1, n, "the row is in the table again")
	})

	t.Run("WhatACrashLeftIsMended", func(t *testing.T) {
		t.Parallel()
		pool := ledger(t)
		p := postgres.Partitions{Table: "ledger", Span: postgres.Daily, Keep: day, Guard: guardOpen}
		_, err := p.Ensure(t.Context(), pool, noon)
		require.NoError(t, err)
		// Detached, not dropped; and one detached that still holds open rows.
		require.NoError(t, insert(t.Context(), pool, noon, true))
		for _, name := range []string{"ledger_p20270313", "ledger_p20270314"} {
			_, err := pool.Exec(t.Context(), `ALTER TABLE ledger DETACH PARTITION `+name)
			require.NoError(t, err)
		}
		dropped, err := p.Drop(t.Context(), pool, noon.Add(3*day))
		require.ErrorIs(t, err, postgres.ErrGuarded)
		require.Equal(t, []string{"ledger_p20270313", "ledger_p20270315"}, dropped)
		var n int
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM ledger WHERE open`).Scan(&n))
		require.Equal(t, 1, n)
	})

	t.Run("ACutOffDetachIsFinished", func(t *testing.T) {
		t.Parallel()
		pool := ledger(t)
		p := postgres.Partitions{Table: "ledger", Span: postgres.Daily, Keep: day}
		_, err := p.Ensure(t.Context(), pool, noon)
		require.NoError(t, err)
		// A reader with an old snapshot keeps DETACH CONCURRENTLY waiting past its lock_timeout.
		reader, err := pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = reader.Exec(t.Context(), `SELECT count(*) FROM ledger`)
		require.NoError(t, err)
		short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err = p.Drop(short, pool, noon.Add(day+time.Hour))
		require.Error(t, err)
		require.NoError(t, reader.Rollback(t.Context()))

		require.Eventually(t, func() bool {
			dropped, err := p.Drop(t.Context(), pool, noon.Add(day+time.Hour))
			return err == nil && len(dropped) == 1
		}, 10*time.Second, 50*time.Millisecond, "the next call drops what the first detached by half")
	})
}

func guardOpen(ctx context.Context, db postgres.Querier, name string) (bool, error) {
	var left bool
	err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+name+` WHERE open)`).Scan(&left)
	return !left, err
}
