package testkit_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/testkit"
)

// TestMain proves that a test binary that uses the kit keeps no goroutine of it.
func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(testkit.OfClusterClients()...); err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	os.Exit(code)
}

func migrations(sql string) fstest.MapFS {
	return fstest.MapFS{"0001_first.sql": {Data: []byte("-- +goose Up\n" + sql)}}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) })
	return conn
}

func TestNewDatabase(t *testing.T) {
	t.Parallel()
	ink := testkit.Schema{Service: "ink", Migrations: migrations("CREATE TABLE pens (id int PRIMARY KEY);")}
	oak := testkit.Schema{Service: "oak", Migrations: migrations("CREATE TABLE trees (id int PRIMARY KEY);")}

	t.Run("EachServiceHasItsOwnSchema", func(t *testing.T) {
		t.Parallel()
		db := testkit.NewDatabase(t, ink, oak)
		_, err := connect(t, db.URL("ink")).Exec(t.Context(), "INSERT INTO pens VALUES (1)")
		require.NoError(t, err)
		var schema string
		err = connect(t, db.AdminURL()).QueryRow(t.Context(),
			"SELECT schemaname FROM pg_tables WHERE tablename = 'trees'").Scan(&schema)
		require.NoError(t, err)

		_, err = connect(t, db.URL("ink")).Exec(t.Context(), "SELECT FROM "+pgx.Identifier{schema, "trees"}.Sanitize())
		var refused *pgconn.PgError
		require.ErrorAs(t, err, &refused, "another service's table must be closed")
		require.Equal(t, "42501", refused.Code)
		_, err = connect(t, db.URL("ink")).Exec(t.Context(), "CREATE TEMPORARY TABLE scrap ()")
		require.ErrorAs(t, err, &refused, "a copy has the same rights as a database of production")
		require.Equal(t, "42501", refused.Code)
	})
	t.Run("TestsDoNotSeeEachOther", func(t *testing.T) {
		t.Parallel()
		first, second := testkit.NewDatabase(t, ink), testkit.NewDatabase(t, ink)
		_, err := connect(t, first.URL("ink")).Exec(t.Context(), "INSERT INTO pens VALUES (1)")
		require.NoError(t, err)
		var n int
		require.NoError(t, connect(t, second.URL("ink")).QueryRow(t.Context(), "SELECT count(*) FROM pens").Scan(&n))
		require.Zero(t, n)
	})
	t.Run("ChangedMigrationsMakeAnotherTemplate", func(t *testing.T) {
		t.Parallel()
		url := testkit.ServiceDatabase(t, "ink", migrations("CREATE TABLE pens (id int PRIMARY KEY, colour text);"))
		_, err := connect(t, url).Exec(t.Context(), "SELECT colour FROM pens")
		require.NoError(t, err)
	})
	t.Run("GoneAfterTheTest", func(t *testing.T) {
		t.Parallel()
		var name string
		t.Run("inner", func(t *testing.T) {
			conn, err := pgx.Connect(t.Context(), testkit.NewDatabase(t, ink).AdminURL())
			require.NoError(t, err)
			name = conn.Config().Database
			// A connection that the test forgot must not keep the database alive.
			t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		})
		var exists bool
		require.NoError(t, connect(t, testkit.EmptyDatabase(t)).QueryRow(t.Context(),
			"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists))
		require.False(t, exists)
	})
	t.Run("ManyAtOnce", func(t *testing.T) {
		t.Parallel()
		elm := testkit.Schema{Service: "elm", Migrations: migrations("CREATE TABLE leaves (id int);")}
		for range 6 {
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				_, err := connect(t, testkit.NewDatabase(t, elm, ink).URL("elm")).Exec(t.Context(), "INSERT INTO leaves VALUES (1)")
				require.NoError(t, err)
			})
		}
	})
}

func TestNATS(t *testing.T) {
	t.Parallel()
	t.Run("AccountsAreIsolated", func(t *testing.T) {
		t.Parallel()
		first, second := testkit.NATS(t), testkit.NATS(t)
		a, b := first.Connect(t), second.Connect(t)
		sub, err := b.SubscribeSync("greeting")
		require.NoError(t, err)
		same, err := first.Connect(t).SubscribeSync("greeting")
		require.NoError(t, err)
		// The flush of each subscriber's connection comes back after the server has its subscription.
		require.NoError(t, b.Flush())
		require.Eventually(t, func() bool {
			if err := a.Publish("greeting", nil); err != nil {
				return false
			}
			_, err := same.NextMsg(50 * time.Millisecond)
			return err == nil
		}, 10*time.Second, time.Millisecond, "a client of the same account hears the message")
		_, err = sub.NextMsg(50 * time.Millisecond)
		require.Error(t, err, "a client of another account hears nothing")
	})
	t.Run("StreamsAreIsolatedAndDurable", func(t *testing.T) {
		t.Parallel()
		for range 8 {
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				js, err := jetstream.New(testkit.NATS(t).Connect(t))
				require.NoError(t, err)
				stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
					Name: "events", Subjects: []string{"event.>"}, MaxBytes: 8 << 30, Storage: jetstream.FileStorage,
				})
				require.NoError(t, err)
				_, err = js.Publish(t.Context(), "event.one", []byte("1"))
				require.NoError(t, err)
				info, err := stream.Info(t.Context())
				require.NoError(t, err)
				require.EqualValues(t, 1, info.State.Msgs)
			})
		}
	})
}

func redisClient(t *testing.T, url string) rueidis.Client {
	t.Helper()
	opt, err := rueidis.ParseURL(url)
	require.NoError(t, err)
	opt.AlwaysRESP2, opt.DisableCache = true, true
	client, err := rueidis.NewClient(opt)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func TestRedis(t *testing.T) {
	t.Parallel()
	first, second := redisClient(t, testkit.Redis(t)), redisClient(t, testkit.Redis(t))
	ctx := t.Context()
	require.NoError(t, first.Do(ctx, first.B().Set().Key("k").Value("v").PxMilliseconds(300).Build()).Error())
	n, err := second.Do(ctx, second.B().Exists().Key("k").Build()).AsInt64()
	require.NoError(t, err)
	require.Zero(t, n, "another test's key")
	require.Eventually(t, func() bool {
		n, err := first.Do(ctx, first.B().Exists().Key("k").Build()).AsInt64()
		return err == nil && n == 0
	}, 10*time.Second, 10*time.Millisecond, "TTLs run out by themselves")
}

//nolint:tparallel // The outer test acts after the end of the inner one.
func TestLogger(t *testing.T) {
	t.Parallel()
	var late func()
	t.Run("inner", func(t *testing.T) {
		log := testkit.Logger(t)
		log.Debug("during the test", "n", 1)
		late = func() { log.Info("after the test") }
	})
	require.NotPanics(t, late)
}

func TestServersOfTheMachine(t *testing.T) {
	t.Parallel()
	t.Run("RedisCluster", func(t *testing.T) {
		t.Parallel()
		opt, err := rueidis.ParseURL(testkit.RedisCluster(t))
		require.NoError(t, err)
		c, err := rueidis.NewClient(opt)
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, rueidis.ClientModeCluster, c.Mode())
		require.Len(t, c.Nodes(), 3)
		for i := range 50 { // in all three thirds
			key := fmt.Sprintf("key-%d", i)
			require.NoError(t, c.Do(t.Context(), c.B().Set().Key(key).Value("1").Build()).Error())
		}
	})
	t.Run("PgBouncer", func(t *testing.T) {
		t.Parallel()
		direct := testkit.NewDatabase(t, testkit.Schema{Service: "alpha"}).URL("alpha")
		conn, err := pgx.Connect(t.Context(), testkit.PgBouncer(t, direct).URL(direct)+"&default_query_exec_mode=cache_describe")
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close(context.WithoutCancel(t.Context()))) }()
		var schema string
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT current_schema()").Scan(&schema))
		require.Equal(t, "alpha", schema, "the role's settings hold behind it too")
	})
}
