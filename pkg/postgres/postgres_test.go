package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
)

var noon = time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 8, ApplicationName: "test"})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestOpen(t *testing.T) {
	t.Parallel()
	db := testkit.NewDatabase(t, testkit.Schema{Service: "alpha"})
	t.Run("EveryQueryModeServesUUIDArrays", func(t *testing.T) {
		t.Parallel()
		for _, mode := range []string{"", postgres.ExecModeCacheStatement, postgres.ExecModeCacheDescribe} {
			pool, err := postgres.Open(t.Context(), postgres.Config{URL: db.URL("alpha"), QueryExecMode: mode})
			require.NoError(t, err)
			require.NoError(t, postgres.Ready(t.Context(), pool))
			var n int
			require.NoError(t, pool.QueryRow(t.Context(), `SELECT cardinality($1::uuid[])`, [][16]byte{{1}, {2}}).Scan(&n))
			require.Equal(t, 2, n)
			pool.Close()
		}
	})
	t.Run("UUIDsAreReadAndWritten", func(t *testing.T) {
		t.Parallel()
		for _, mode := range []string{postgres.ExecModeCacheStatement, postgres.ExecModeCacheDescribe} {
			pool, err := postgres.Open(t.Context(), postgres.Config{URL: db.URL("alpha"), QueryExecMode: mode})
			require.NoError(t, err)
			want := uuid.New()
			var one uuid.UUID
			var some, none *uuid.UUID
			var null uuid.NullUUID
			var list []uuid.UUID
			var text string
			require.NoError(t, pool.QueryRow(t.Context(), "SELECT $1::uuid, $1, NULL::uuid, nullif($1, $1), ARRAY[$1, $1], $1::text", want).
				Scan(&one, &some, &none, &null, &list, &text))
			require.Equal(t, want, one)
			require.Equal(t, &want, some)
			require.Nil(t, none)
			require.False(t, null.Valid)
			require.Equal(t, []uuid.UUID{want, want}, list)
			require.Equal(t, want.String(), text)
			require.Error(t, pool.QueryRow(t.Context(), "SELECT NULL::uuid").Scan(&one), "nothing is not the id of zeros")
			pool.Close()
		}
	})
	t.Run("UnknownModeIsRefused", func(t *testing.T) {
		t.Parallel()
		_, err := postgres.Open(t.Context(), postgres.Config{URL: db.URL("alpha"), QueryExecMode: "guess"})
		require.ErrorContains(t, err, "guess")
	})
	t.Run("AbsentServerIsNoErrorUntilReady", func(t *testing.T) {
		t.Parallel()
		pool := open(t, "postgres://nobody:secret@127.0.0.1:1/none")
		err := postgres.Ready(t.Context(), pool)
		require.True(t, postgres.IsUnavailable(err), "%v", err)
		require.NotContains(t, err.Error(), "secret")
	})
}

func TestEnsureService(t *testing.T) {
	t.Parallel()
	db := testkit.NewDatabase(t, testkit.Schema{Service: "alpha"}, testkit.Schema{Service: "beta"})
	t.Run("AtOnceByManyIsFine", func(t *testing.T) {
		t.Parallel()
		group, ctx := errgroup.WithContext(t.Context())
		for range 6 {
			group.Go(func() error {
				conn, err := pgx.Connect(ctx, testkit.EmptyDatabase(t))
				if err != nil {
					return err
				}
				return errors.Join(postgres.EnsureService(ctx, conn, "crowd", "it's \\ odd"), conn.Close(context.WithoutCancel(ctx)))
			})
		}
		require.NoError(t, group.Wait())
	})
	t.Run("RightsEndAtTheOwnSchema", func(t *testing.T) {
		t.Parallel()
		alpha := open(t, db.URL("alpha"))
		var schema string
		require.NoError(t, alpha.QueryRow(t.Context(), `SELECT current_schema()`).Scan(&schema))
		require.Equal(t, "alpha", schema)
		for _, forbidden := range []string{
			`SELECT * FROM beta.outbox`, `CREATE TABLE public.t ()`, `CREATE SCHEMA mine`,
			`CREATE TABLE extensions.t ()`, `CREATE EXTENSION citext`,
		} {
			_, err := alpha.Exec(t.Context(), forbidden)
			require.ErrorContains(t, err, "42501", forbidden)
		}
	})
	t.Run("ExtensionsAreThereForAllServices", func(t *testing.T) {
		t.Parallel()
		for _, service := range []string{"alpha", "beta"} {
			var same bool
			require.NoError(t, open(t, db.URL(service)).QueryRow(t.Context(), `SELECT similarity('abc', 'abc') = 1`).Scan(&same))
			require.True(t, same)
		}
	})
	t.Run("TheRoleCarriesTheLimitsOfTime", func(t *testing.T) {
		t.Parallel()
		alpha := open(t, db.URL("alpha"))
		for setting, want := range map[string]string{
			"idle_in_transaction_session_timeout": "10s", "lock_timeout": "5s", "statement_timeout": "30s", "timezone": "UTC",
			"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off",
		} {
			var got string
			require.NoError(t, alpha.QueryRow(t.Context(), `SELECT current_setting($1)`, setting).Scan(&got))
			require.Equal(t, want, got, setting)
		}
	})
	t.Run("AnOddNameIsRefused", func(t *testing.T) {
		t.Parallel()
		conn, err := pgx.Connect(t.Context(), db.AdminURL())
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) }()
		require.Error(t, postgres.EnsureService(t.Context(), conn, `x"; DROP`, "p"))
	})
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"0001_a.sql": {Data: []byte("-- +goose Up\nCREATE TABLE thing (id int PRIMARY KEY);\n-- +goose Down\nDROP TABLE thing;\n")},
	}
	t.Run("AtOnceByManyAppliesEachOnce", func(t *testing.T) {
		t.Parallel()
		db := testkit.NewDatabase(t, testkit.Schema{Service: "alpha"})
		group, ctx := errgroup.WithContext(t.Context())
		for range 3 {
			group.Go(func() error { return postgres.Migrate(ctx, db.URL("alpha"), "alpha", files) })
		}
		require.NoError(t, group.Wait())
		_, err := open(t, db.URL("alpha")).Exec(t.Context(), `INSERT INTO alpha.thing VALUES (1)`)
		require.NoError(t, err)
	})
	t.Run("GoesOnFromAnEarlierRelease", func(t *testing.T) {
		t.Parallel()
		db := testkit.NewDatabase(t, testkit.Schema{Service: "alpha", Migrations: files})
		more := fstest.MapFS{
			"0001_a.sql": files["0001_a.sql"],
			"0002_b.sql": {Data: []byte("-- +goose Up\nALTER TABLE thing ADD COLUMN name text NOT NULL DEFAULT '';\n")},
		}
		require.NoError(t, postgres.Migrate(t.Context(), db.URL("alpha"), "alpha", more))
		pool := open(t, db.URL("alpha"))
		_, err := pool.Exec(t.Context(), `INSERT INTO thing VALUES (1, 'x')`)
		require.NoError(t, err)
		_, err = pool.Exec(t.Context(), `INSERT INTO thing VALUES (1, 'y')`)
		require.True(t, postgres.IsUniqueViolation(err, "thing_pkey"))
		require.True(t, postgres.IsUniqueViolation(err, ""))
		require.False(t, postgres.IsUniqueViolation(err, "other"))
		require.False(t, postgres.IsUnavailable(err))
	})
	t.Run("ABrokenFileIsNamed", func(t *testing.T) {
		t.Parallel()
		db := testkit.NewDatabase(t, testkit.Schema{Service: "alpha"})
		bad := fstest.MapFS{"0001_bad.sql": {Data: []byte("-- +goose Up\nCREATE NONSENSE;\n")}}
		err := postgres.Migrate(t.Context(), db.URL("alpha"), "alpha", bad)
		require.ErrorContains(t, err, "0001_bad.sql")
	})
}

func TestIsRetryable(t *testing.T) {
	t.Parallel()
	pool := open(t, testkit.NewDatabase(t, testkit.Schema{Service: "alpha"}).URL("alpha"))
	_, err := pool.Exec(t.Context(), `CREATE TABLE pair (id int PRIMARY KEY, n int); INSERT INTO pair VALUES (1, 0), (2, 0)`)
	require.NoError(t, err)
	// Two transactions take the same two rows in opposite order: one is the victim.
	both := make(chan struct{}, 2)
	errs := make(chan error, 2)
	for _, order := range [][2]int{{1, 2}, {2, 1}} {
		go func() {
			errs <- pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), `UPDATE pair SET n = n + 1 WHERE id = $1`, order[0]); err != nil {
					return err
				}
				both <- struct{}{}
				for len(both) < 2 && t.Context().Err() == nil {
					if _, err := tx.Exec(t.Context(), `SELECT pg_sleep(0.01)`); err != nil {
						return err
					}
				}
				_, err := tx.Exec(t.Context(), `UPDATE pair SET n = n + 1 WHERE id = $1`, order[1])
				return err
			})
		}()
	}
	first, second := <-errs, <-errs
	victim := errors.Join(first, second)
	require.NotEqual(t, first == nil, second == nil, "exactly one is the victim: %v", victim)
	require.True(t, postgres.IsRetryable(victim))
	require.False(t, postgres.IsRetryable(fmt.Errorf("other")))
}
