package testkit_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/testkit"
)

func TestPrivateNATS(t *testing.T) {
	t.Parallel()
	s := testkit.PrivateNATS(t)
	nc := s.Connect(t, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "events", Subjects: []string{"event.>"}})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "event.one", []byte("1"))
	require.NoError(t, err)
	messages := func(want uint64) func() bool {
		return func() bool {
			stream, err := js.Stream(t.Context(), "events")
			return err == nil && stream.CachedInfo().State.Msgs == want
		}
	}

	s.Kill9()
	require.Eventually(t, func() bool { return !nc.IsConnected() }, 10*time.Second, time.Millisecond)
	s.Kill9() // a second kill does nothing
	s.Restart()
	require.Eventually(t, messages(1), 10*time.Second, 10*time.Millisecond, "the client finds the same server with its data")

	s.Pause()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = js.Publish(short, "event.two", nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	s.Resume()
	require.Eventually(t, messages(2), 10*time.Second, 10*time.Millisecond, "what was sent meanwhile arrives")

	s.Wipe()
	s.Restart()
	require.Eventually(t, func() bool {
		_, err := js.Stream(t.Context(), "events")
		return err != nil && nc.IsConnected()
	}, 10*time.Second, 10*time.Millisecond, "the streams are gone")
	s.Pause() // the end of the test must cope with a paused server
}

func TestPrivateRedis(t *testing.T) {
	t.Parallel()
	s := testkit.PrivateRedis(t, "--maxclients", "100")
	opt, err := rueidis.ParseURL(s.URL)
	require.NoError(t, err)
	client, err := rueidis.NewClient(opt)
	require.NoError(t, err)
	defer client.Close()
	ctx := t.Context()
	limit, err := client.Do(ctx, client.B().ConfigGet().Parameter("maxclients").Build()).AsStrMap()
	require.NoError(t, err)
	require.Equal(t, "100", limit["maxclients"], "arguments reach the server")
	get := func() error { // the client asks again and again while nobody answers
		bounded, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		return client.Do(bounded, client.B().Get().Key("k").Build()).Error()
	}
	for _, end := range []func(){s.Stop, s.Kill9} {
		require.NoError(t, client.Do(ctx, client.B().Set().Key("k").Value("v").Build()).Error())
		pid := strconv.Itoa(s.PID())
		end()
		require.Zero(t, s.PID())
		require.True(t, ended(pid))
		require.Error(t, get())
		s.Restart()
		require.Eventually(t, func() bool { return rueidis.IsRedisNil(get()) }, 10*time.Second, 10*time.Millisecond, "the same port, and empty")
	}

	s.Pause()
	require.ErrorIs(t, get(), context.DeadlineExceeded)
	s.Resume()
	require.Eventually(t, func() bool { return rueidis.IsRedisNil(get()) }, 10*time.Second, 10*time.Millisecond)
	s.Pause() // the end of the test must cope with a paused server
}

// TestKilledTestLeavesNothing kills a test binary that holds shared servers and private ones, one of them paused.
func TestKilledTestLeavesNothing(t *testing.T) {
	t.Parallel()
	victim := exec.Command(os.Args[0], "-test.run=^TestVictim$")
	temp, err := os.MkdirTemp("", "victim-") //nolint:usetesting // t.TempDir is closed to the user of PostgreSQL
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(temp)) }()
	require.NoError(t, os.Chmod(temp, 0o755)) // PostgreSQL's user must get in
	victim.Env = append(os.Environ(), asVictim+"=1", "PARLEY_TEST_STACK=", "TMPDIR="+temp)
	stdin, err := victim.StdinPipe()
	require.NoError(t, err)
	defer func() { _ = stdin.Close() }()
	stdout, err := victim.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, victim.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.NoError(t, victim.Process.Kill())
	require.Error(t, victim.Wait())
	pids := strings.Fields(line)
	require.Len(t, pids, 2)
	for _, pid := range pids {
		require.Eventually(t, func() bool { return ended(pid) }, 20*time.Second, 5*time.Millisecond, "process %s must end", pid)
	}
}

const asVictim = "PARLEY_TESTKIT_TEST_AS_VICTIM"

// TestVictim does nothing by itself; it is the process that TestKilledTestLeavesNothing kills.
func TestVictim(t *testing.T) {
	t.Parallel()
	if os.Getenv(asVictim) == "" {
		return
	}
	testkit.EmptyDatabase(t)
	bus, postgres := testkit.PrivateNATS(t), testkit.PrivatePostgres(t)
	bus.Pause()
	_, err := os.Stdout.WriteString(strconv.Itoa(bus.PID()) + " " + strconv.Itoa(postgres.PID()) + "\n")
	require.NoError(t, err)
	_, _ = os.Stdin.Read(make([]byte, 1)) // until killed
}

// ended says whether the process is gone; one that only waits to be collected counts as gone.
func ended(pid string) bool {
	if state, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil {
		return strings.Contains(string(state), ") Z ")
	}
	number, err := strconv.Atoi(pid)
	return err == nil && syscall.Kill(number, 0) != nil
}

func TestPrivatePostgres(t *testing.T) {
	t.Parallel()
	s := testkit.PrivatePostgres(t)
	db := s.NewDatabase(t, testkit.Schema{Service: "ink", Migrations: migrations("CREATE TABLE pens (id int PRIMARY KEY);")})
	conn, err := pgx.Connect(t.Context(), db.URL("ink"))
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	_, err = conn.Exec(t.Context(), "INSERT INTO pens VALUES (1)")
	require.NoError(t, err)

	s.Kill9()
	_, err = conn.Exec(t.Context(), "INSERT INTO pens VALUES (2)")
	require.Error(t, err)
	s.Restart()
	var n int
	require.NoError(t, connect(t, db.URL("ink")).QueryRow(t.Context(), "SELECT count(*) FROM pens").Scan(&n))
	require.Equal(t, 1, n, "what was acknowledged before the kill is there")

	s.Restart()
	require.NoError(t, connect(t, s.AdminURL()).Ping(t.Context()))
}
