package stack_test

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/stack"
)

func TestCommand(t *testing.T) {
	t.Parallel()
	t.Run("EndsWithItsStandardInputAndLeavesNothing", func(t *testing.T) {
		t.Parallel()
		temp := openDir(t)
		// --durable keeps the data below TMPDIR, where this test can see it.
		r := launch(t, program(t, []string{"TMPDIR=" + temp}, "--durable"))
		require.Equal(t, 1, query[int](t, r.Postgres, "SELECT 1"))
		require.Len(t, glob(t, temp), 1)
		require.NoError(t, r.stdin.Close())
		require.NoError(t, r.cmd.Wait())
		require.False(t, alive(r.PIDs["postgres"]))
		require.Empty(t, glob(t, temp))
	})
	t.Run("EndsWithASignal", func(t *testing.T) {
		t.Parallel()
		r := launch(t, program(t, nil))
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, r.cmd.Wait())
		require.False(t, alive(r.PIDs["postgres"]))
	})
	t.Run("RunsACommandOnTheStack", func(t *testing.T) {
		t.Parallel()
		out, err := program(t, []string{stack.EnvEndpoints + "=old"}, "--only", "nats,redis", "--", "sh", "-c",
			"printf %s \"$"+stack.EnvEndpoints+"\"").Output()
		require.NoError(t, err)
		var e stack.Endpoints
		require.NoError(t, json.Unmarshal(out, &e))
		require.NotEmpty(t, e.NATS)
		require.NotEmpty(t, e.Redis)
		require.Empty(t, e.Postgres)
	})
	t.Run("ExitsWithTheCommandsCode", func(t *testing.T) {
		t.Parallel()
		err := program(t, nil, "--only", "redis", "--", "sh", "-c", "exit 7").Run()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 7, exit.ExitCode())
	})
	t.Run("PassesASignalToTheCommand", func(t *testing.T) {
		t.Parallel()
		// A trapped signal ends `wait` at once, which it does not do to a foreground command.
		cmd := program(t, nil, "--only", "redis", "--", "sh", "-c", "trap 'kill $!; exit 9' TERM; sleep 600 & echo ready; wait")
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = io.ReadFull(stdout, make([]byte, len("ready\n")))
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.Error(t, cmd.Wait())
		require.Equal(t, 9, cmd.ProcessState.ExitCode())
	})
	t.Run("NamesWhatIsMissing", func(t *testing.T) {
		t.Parallel()
		out, err := program(t, []string{"PARLEY_PG_BIN=/nowhere"}, "--only", "postgres").CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "PARLEY_PG_BIN /nowhere")
		out, err = program(t, nil, "--only", "mysql").CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "unknown server")
	})
}

// TestUsers proves both ways in which people run it: as a normal user and as root. As a normal user the
// first is what all other tests do, and the second cannot happen.
func TestUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		s := start(t, stack.Options{Dir: t.TempDir(), Postgres: &stack.PostgresOptions{Volatile: true}})
		require.Equal(t, 1, query[int](t, s.Postgres.URL, "SELECT 1"))
		return
	}
	t.Run("NormalUser", func(t *testing.T) {
		t.Parallel()
		nobody, err := user.Lookup("nobody")
		require.NoError(t, err)
		uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
		require.NoError(t, err)
		gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
		require.NoError(t, err)
		// The test binary lies in a folder that is closed to others.
		self := filepath.Join(openDir(t), "parley-stack")
		binary, err := os.ReadFile(os.Args[0])
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(self, binary, 0o755))
		cmd := program(t, []string{"HOME=/nonexistent"})
		cmd.Path, cmd.Dir = self, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		r := launch(t, cmd)
		require.Equal(t, 1, query[int](t, r.Postgres, "SELECT 1"))
		require.NoError(t, r.stdin.Close())
		require.NoError(t, r.cmd.Wait())
	})
	t.Run("RootWithAClosedFolder", func(t *testing.T) {
		t.Parallel()
		closed := filepath.Join(openDir(t), "home")
		require.NoError(t, os.Mkdir(closed, 0o700))
		o := stack.Options{Dir: filepath.Join(closed, "data"), Postgres: &stack.PostgresOptions{Volatile: true}}
		s := start(t, o)
		moved := s.Postgres.Dir
		require.False(t, strings.HasPrefix(moved, closed), "PostgreSQL cannot work in %s", moved)
		require.NoError(t, s.Stop())
		require.NoError(t, stack.Wipe(o.Dir))
		require.NoDirExists(t, moved)
	})
}

func glob(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	return found
}
