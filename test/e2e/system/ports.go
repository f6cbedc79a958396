package system

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports of processes lie below the range from which kernels hand out ports of
// their own accord, so that no client's socket takes one while its process is
// down; and beside those of the test kit's servers (20,000 and up).
const lowestPort, portCount = 11000, 8000

// given are the ports that processes of this test binary have: one that is down
// for a moment still owns its port.
var given sync.Map

// address returns a host:port that is free now and that no process of this test
// binary was given before.
func address(t testing.TB) string {
	t.Helper()
	var lc net.ListenConfig
	for range 200 {
		port := lowestPort + rand.IntN(portCount)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := lc.Listen(t.Context(), "tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatalf("close a probe of %s: %v", addr, err)
		}
		return addr
	}
	t.Fatalf("no free port from %d to %d", lowestPort, lowestPort+portCount)
	return ""
}
