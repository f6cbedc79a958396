package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/test/e2e/system"
)

// startBare starts the yardstick on a database server of its own. The people are the product's: their tokens
// say who they are, and it believes them.
func startBare(t testing.TB, of people) people {
	t.Helper()
	server := testkit.PrivatePostgres(t)
	database := server.NewDatabase(t)
	address := freeAddress(t)
	cmd := exec.Command(system.Program(t, "bare"), "-listen", address)
	separator := "?"
	if strings.Contains(database.AdminURL(), "?") {
		separator = "&"
	}
	cmd.Env = append(os.Environ(), "BARE_POSTGRES="+database.AdminURL()+separator+"pool_max_conns=20")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the yardstick: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have failed
		_ = cmd.Wait()
	})
	awaitListening(t, address)
	return people{of.file, []string{
		"--url", "ws://" + address + "/v1/ws", "--pids", fmt.Sprintf("server=%d,postgres=%d", cmd.Process.Pid, server.PID()),
	}}
}

// freeAddress is one that nobody listened on a moment ago.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a port: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatalf("find a port: %v", err)
	}
	return l.Addr().String()
}

func awaitListening(t testing.TB, address string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close() // it was only to see
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens on %s: %v", address, err)
		}
	}
}

// execute runs statements in a database.
func execute(ctx context.Context, url, statements string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	_, err = conn.Exec(ctx, statements)
	return errors.Join(err, conn.Close(ctx))
}

// loadAverage is that of the last minute, for the record.
func loadAverage() string {
	raw, _ := os.ReadFile("/proc/loadavg") // unknown elsewhere
	one, _, _ := strings.Cut(string(raw), " ")
	return one
}

// cpuModel names the processor, for the record.
func cpuModel() string {
	raw, _ := os.ReadFile("/proc/cpuinfo") // unknown elsewhere
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
