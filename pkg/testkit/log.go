package testkit

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// Logger writes everything from debug upwards to the test's log. Lines that come after the test's end are
// dropped: the testing package panics on them.
func Logger(t testing.TB) *slog.Logger {
	w := &testLog{t: t}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testLog struct {
	mu     sync.Mutex
	t      testing.TB
	closed bool
}

// Write logs one line. It holds the lock meanwhile, so that close waits for lines on their way.
func (w *testLog) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.t.Log(strings.TrimRight(string(line), "\n"))
	}
	return len(line), nil
}

func (w *testLog) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}
