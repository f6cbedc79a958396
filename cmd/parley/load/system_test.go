package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/cmd/parley/seed"
	"github.com/parleychat/parley/cmd/parley/stack"
)

// asProgram makes this test program be `parley`, so that it can be its own server and its
// own client processes.
const asProgram = "PARLEY_LOAD_TEST_PROGRAM"

// asServer as its value: it ends with the test program, however that ends.
const asServer = "server"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" && (len(os.Args) < 2 || os.Args[1] != workerCommand) {
		os.Exit(m.Run())
	}
	if os.Getenv(asProgram) == asServer {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // the other end is closed by its death at the latest
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}()
	}
	root := &cobra.Command{Use: "parley", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(dev.Command(), seed.Command(), Command(), WorkerCommand())
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// program prepares `parley` with arguments.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	return cmd
}

// system is a `parley dev` with people.
type system struct {
	dev.Ready
	people string
	cmd    *exec.Cmd
}

// startSystem starts `parley dev` in a folder of its own and seeds people. It ends with the test.
func startSystem(t *testing.T, people int, env ...string) *system {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	t.Cleanup(func() { require.NoError(t, stack.Wipe(data)) }) // PostgreSQL's files may have had to go elsewhere
	cmd := program(t, "dev", "--data", data, "--json", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
	cmd.Env = append(append(cmd.Env, asProgram+"="+asServer), env...)
	_, err := cmd.StdinPipe()
	require.NoError(t, err)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var messages bytes.Buffer
	cmd.Stderr = &messages
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() }) // ended by t.Context()
	s := &system{cmd: cmd, people: filepath.Join(t.TempDir(), "users.jsonl")}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("not ready: %v: %s", err, messages.String())
	}
	require.NoError(t, json.Unmarshal(line, &s.Ready))
	seeded, err := program(t, "seed", "--data", data, "--users", fmt.Sprint(people), "--pairs", "3", "--out", s.people).CombinedOutput()
	require.NoError(t, err, string(seeded))
	return s
}

// options are those of a small load on people that no other test uses.
func (s *system) options(skip int) Options {
	return Options{
		Scenario: scenarioDirect, URL: s.Socket, UsersFile: s.people, Skip: skip, Pairs: 20, Conns: 100, Mode: modeClosed, Wait: "both",
		Rate: 100, Duration: 2 * time.Second, Size: 100, Procs: 1, Dials: 16, Check: true, RecordLimit: 1_000_000, Seed: 7, Sync: true,
		PIDs: fmt.Sprintf("server=%d,postgres=%d", s.PIDs["stack"], s.PIDs["postgres"]), Metrics: []string{s.Admin},
	}
}

func runLoad(t *testing.T, o Options, p plant) *Report {
	t.Helper()
	require.NoError(t, o.check())
	report, err := runPlanted(t.Context(), o, io.Discard, p)
	require.NoError(t, err)
	return report
}
