package bench

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/test/e2e/system"
)

// startBare starts the yardstick on a database server of its own. The people are the product's: their tokens
// say who they are, and it believes them.
func startBare(t testing.TB, of people) people {
	t.Helper()
	server := testkit.PrivatePostgres(t)
	database := server.NewDatabase(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a port: %v", err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatalf("find a port: %v", err)
	}
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
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the yardstick does not listen: %v", err)
		}
	}
	return people{of.file, []string{
		"--url", "ws://" + address + "/v1/ws", "--pids", fmt.Sprintf("server=%d,postgres=%d", cmd.Process.Pid, server.PID()),
	}}
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
