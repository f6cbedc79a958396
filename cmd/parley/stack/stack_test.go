package stack_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/cmd/parley/stack"
	"github.com/parleychat/parley/pkg/cache"
)

// asProgram makes this test binary be `parley stack`, so that tests have a process to kill.
const asProgram = "PARLEY_STACK_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" {
		os.Exit(m.Run())
	}
	err := stack.Command().ExecuteContext(context.Background())
	if exit, ok := errors.AsType[stack.ExitError](err); ok {
		os.Exit(int(exit))
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// openDir is a temporary folder that every user can enter; t.TempDir is closed to others.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := stack.TempDir(true)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func start(t *testing.T, o stack.Options) *stack.Stack {
	t.Helper()
	s, err := stack.Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func query[T any](t *testing.T, url, sql string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var v T
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&v))
	return v
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// program prepares `parley stack` with the given environment beside the usual one.
func program(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), append(env, asProgram+"=1")...)
	return cmd
}

// running is a started `parley stack` that has said where its servers are.
type running struct {
	stack.Endpoints
	cmd   *exec.Cmd
	stdin io.Closer
}

func launch(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	r := &running{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("not ready: %v, %v: %s", err, cmd.Wait(), stderr.String())
	}
	require.NoError(t, json.Unmarshal(line, &r.Endpoints))
	return r
}

func alive(pid int) bool {
	state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !os.IsNotExist(err)
	}
	// A zombie has ended; whether somebody collects it is not ours to say.
	return !bytes.Contains(state, []byte(") Z "))
}

func requireGone(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool { return !alive(pid) }, 20*time.Second, 5*time.Millisecond, "process %d must end", pid)
}

func TestStart(t *testing.T) {
	t.Parallel()
	t.Run("SecondStartFindsTheData", func(t *testing.T) {
		t.Parallel()
		o := stack.Options{
			Dir: openDir(t), Postgres: &stack.PostgresOptions{}, NATS: &stack.NATSOptions{SyncAlways: true}, Redis: &stack.RedisOptions{},
		}
		s := start(t, o)
		execute(t, s.Postgres.URL, "CREATE TABLE kept (id int)")
		require.Equal(t, "on", query[string](t, s.Postgres.URL, "SHOW fsync"))
		require.Equal(t, "UTF8", query[string](t, s.Postgres.URL, "SHOW server_encoding"))
		require.Equal(t, "1min", query[string](t, s.Postgres.URL, "SHOW checkpoint_timeout"), "what a killed server has to replay is bounded")
		require.GreaterOrEqual(t, query[int](t, s.Postgres.URL, "SELECT count(*) FROM pg_ls_waldir()"), 17, "no commit waits for a new file of the log")
		require.NoError(t, s.Stop())
		requireGone(t, s.Postgres.PID())

		again := start(t, o)
		require.Zero(t, query[int](t, again.Postgres.URL, "SELECT count(*) FROM kept"))
	})
	t.Run("InstalledRedis", func(t *testing.T) {
		t.Parallel()
		s := start(t, stack.Options{Dir: openDir(t), Redis: &stack.RedisOptions{Installed: true}})
		pid := s.Endpoints().PIDs["redis"]
		require.True(t, alive(pid), "a process of its own")
		client, err := cache.Open(s.Redis.URL, "test")
		require.NoError(t, err)
		defer client.Close()
		ctx := t.Context()
		require.NoError(t, client.Do(ctx, client.B().Set().Key("k").Value("v").Build()).Error())
		value, err := client.DoCache(ctx, client.B().Get().Key("k").Cache(), time.Minute).ToString()
		require.NoError(t, err, "client-side caching, as in production")
		require.Equal(t, "v", value)
		_, port, err := net.SplitHostPort(s.Redis.Addr)
		require.NoError(t, err)
		taken, err := strconv.Atoi(port)
		require.NoError(t, err)
		_, err = stack.Start(ctx, stack.Options{Dir: openDir(t), Redis: &stack.RedisOptions{Installed: true, Port: taken}})
		require.ErrorContains(t, err, "Address already in use", "what it says is told, and a free port is tried again for it")
		require.NoError(t, s.Stop())
		requireGone(t, pid)
	})
	t.Run("OneStackPerFolder", func(t *testing.T) {
		t.Parallel()
		o := stack.Options{Dir: openDir(t), Redis: &stack.RedisOptions{}}
		s := start(t, o)
		_, err := stack.Start(t.Context(), o)
		require.ErrorIs(t, err, stack.ErrInUse)
		require.ErrorIs(t, stack.Wipe(o.Dir), stack.ErrInUse)
		require.NoError(t, s.Stop())
		start(t, o)
	})
	t.Run("FailureLeavesNothingRunning", func(t *testing.T) {
		t.Parallel()
		first := start(t, stack.Options{Dir: openDir(t), Postgres: &stack.PostgresOptions{Volatile: true}})
		o := stack.Options{
			Dir: openDir(t), Redis: &stack.RedisOptions{},
			Postgres: &stack.PostgresOptions{Volatile: true, Port: first.Postgres.Port},
		}
		_, err := stack.Start(t.Context(), o)
		require.ErrorContains(t, err, "could not bind")
		o.Postgres = nil
		start(t, o) // the folder is free again
	})
	t.Run("InterruptedInitIsBegunAnew", func(t *testing.T) {
		t.Parallel()
		dir := openDir(t)
		half := filepath.Join(dir, "postgres", "data.new")
		require.NoError(t, os.MkdirAll(half, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15"), 0o600))
		s := start(t, stack.Options{Dir: dir, Postgres: &stack.PostgresOptions{Volatile: true}})
		require.Equal(t, 1, query[int](t, s.Postgres.URL, "SELECT 1"))
	})
	t.Run("WipeForgetsTheData", func(t *testing.T) {
		t.Parallel()
		o := stack.Options{Dir: openDir(t), Postgres: &stack.PostgresOptions{Volatile: true}}
		s := start(t, o)
		execute(t, s.Postgres.URL, "CREATE TABLE gone (id int)")
		require.NoError(t, s.Stop())
		require.NoError(t, stack.Wipe(o.Dir))
		s = start(t, o)
		require.Zero(t, query[int](t, s.Postgres.URL, "SELECT count(*) FROM pg_tables WHERE tablename = 'gone'"))
	})
	t.Run("NATSInProcessOnly", func(t *testing.T) {
		t.Parallel()
		s := start(t, stack.Options{Dir: openDir(t), NATS: &stack.NATSOptions{InProcessOnly: true}})
		require.Empty(t, s.Endpoints().NATS)
		nc, err := nats.Connect("", nats.InProcessServer(s.NATS.InProcess()))
		require.NoError(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "events", Subjects: []string{"event.>"}})
		require.NoError(t, err)
	})
}

// TestOutsidersAreTold holds that clients of this process come in unnoticed, and that
// another one is told before it can do anything.
func TestOutsidersAreTold(t *testing.T) {
	t.Parallel()
	var outsiders atomic.Int32
	s := start(t, stack.Options{Dir: openDir(t), NATS: &stack.NATSOptions{Outsider: func() { outsiders.Add(1) }}})
	inside, err := nats.Connect("", nats.InProcessServer(s.NATS.InProcess()))
	require.NoError(t, err)
	defer inside.Close()
	js, err := jetstream.New(inside)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "events", Subjects: []string{"event.>"}})
	require.NoError(t, err)
	require.Zero(t, outsiders.Load())
	outside, err := nats.Connect(s.NATS.URL)
	require.NoError(t, err)
	defer outside.Close()
	require.EqualValues(t, 1, outsiders.Load())
	sub, err := outside.SubscribeSync("greeting")
	require.NoError(t, err)
	require.NoError(t, outside.Flush())
	require.NoError(t, inside.Publish("greeting", nil))
	_, err = sub.NextMsg(10 * time.Second)
	require.NoError(t, err, "they are in one account")
}

func TestAccountPerUser(t *testing.T) {
	t.Parallel()
	s := start(t, stack.Options{Dir: openDir(t), NATS: &stack.NATSOptions{AccountPerUser: true}})
	// Many clients of few accounts at once: whoever comes first makes the account, nobody may find it half made.
	var group errgroup.Group
	for i := range 60 {
		group.Go(func() error {
			nc, err := nats.Connect(s.NATS.URL, nats.UserInfo(fmt.Sprintf("account_%d", i%6), "any"))
			if err != nil {
				return err
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				return err
			}
			_, err = js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "events", Subjects: []string{"event.>"}})
			return err
		})
	}
	require.NoError(t, group.Wait())
	_, err := nats.Connect(s.NATS.URL, nats.UserInfo("$SYS", "any"))
	require.ErrorIs(t, err, nats.ErrAuthorization)
	nc, err := nats.Connect(s.NATS.URL)
	require.NoError(t, err, "without a name a client is in the common account")
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.AccountInfo(t.Context())
	require.NoError(t, err)
}

func TestCrash(t *testing.T) {
	t.Parallel()
	t.Run("KilledStackTakesPostgresAlongAndStartsAgain", func(t *testing.T) {
		t.Parallel()
		dir := openDir(t)
		r := launch(t, program(t, nil, "--only", "postgres", "--durable", "--dir", dir))
		execute(t, r.Postgres, "CREATE TABLE kept (id int)")
		require.NoError(t, r.cmd.Process.Kill())
		_ = r.cmd.Wait()
		// At once: the old server may still be on its way out.
		s := start(t, stack.Options{Dir: dir, Postgres: &stack.PostgresOptions{}})
		require.Zero(t, query[int](t, s.Postgres.URL, "SELECT count(*) FROM kept"))
		requireGone(t, r.PIDs["postgres"])
	})
	t.Run("KilledPostgresEndsTheProgramAndRecovers", func(t *testing.T) {
		t.Parallel()
		dir := openDir(t)
		r := launch(t, program(t, nil, "--only", "postgres", "--durable", "--dir", dir))
		execute(t, r.Postgres, "CREATE TABLE kept (id int)")
		require.NoError(t, syscall.Kill(r.PIDs["postgres"], syscall.SIGKILL))
		require.Error(t, r.cmd.Wait(), "a lost server is not a good end")
		s := start(t, stack.Options{Dir: dir, Postgres: &stack.PostgresOptions{}})
		require.Zero(t, query[int](t, s.Postgres.URL, "SELECT count(*) FROM kept"))
	})
	t.Run("KilledOwnerTakesRedisAlong", func(t *testing.T) {
		t.Parallel()
		r := launch(t, program(t, nil, "--only", "redis", "--installed-redis"))
		require.True(t, alive(r.PIDs["redis"]))
		require.NoError(t, r.cmd.Process.Kill())
		_ = r.cmd.Wait()
		requireGone(t, r.PIDs["redis"])
	})
	t.Run("KilledRedisEndsTheProgram", func(t *testing.T) {
		t.Parallel()
		r := launch(t, program(t, nil, "--only", "redis", "--installed-redis"))
		require.NoError(t, syscall.Kill(r.PIDs["redis"], syscall.SIGKILL))
		require.Error(t, r.cmd.Wait(), "a lost server is not a good end")
	})
	t.Run("WithoutRedisServerTheEmbeddedOneServes", func(t *testing.T) {
		t.Parallel()
		r := launch(t, program(t, []string{"PARLEY_REDIS_BIN=" + t.TempDir()}, "--only", "redis", "--installed-redis"))
		require.NotContains(t, r.PIDs, "redis")
		client, err := cache.Open("redis://"+r.Redis+"/0?protocol=2&client_cache=0", "test")
		require.NoError(t, err)
		defer client.Close()
		require.NoError(t, client.Do(t.Context(), client.B().Ping().Build()).Error())
	})
	t.Run("ForeignPIDInTheLockFileIsIgnored", func(t *testing.T) {
		t.Parallel()
		o := stack.Options{Dir: openDir(t), Postgres: &stack.PostgresOptions{Volatile: true}}
		s := start(t, o)
		home := s.Postgres.Dir
		require.NoError(t, s.Stop())
		lock := fmt.Sprintf("%d\n%s/data\n1\n1\n\n\n\nready\n", os.Getpid(), home)
		require.NoError(t, os.WriteFile(filepath.Join(home, "data", "postmaster.pid"), []byte(lock), 0o600))
		start(t, o)
	})
}
