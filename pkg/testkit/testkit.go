// Package testkit gives tests real servers: PostgreSQL, NATS with JetStream and the Redis protocol.
//
// It owns the way from a test to those servers. Invariants: the servers run in child processes, never in the
// test's own (so a kill is a real kill, and no goroutine of theirs stays behind); what one test gets no
// other test sees; everything made for a test is gone after it; children end when the test process ends,
// however it ends. Missing infrastructure fails the test, it never skips.
//
// Shared servers come from the environment variable PARLEY_TEST_STACK, which `make test` sets, else from one
// child per test binary. Tests that kill, stop or pause a server ask for a private one.
//
// It is used by tests only, and it knows no domain. It stands on pkg/postgres, whose own tests therefore live in
// an external test package.
package testkit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// envEndpoints carries the addresses of a running stack as JSON.
const envEndpoints = "PARLEY_TEST_STACK"

// endpoints is the JSON line that `parley stack` prints.
type endpoints struct {
	Postgres string         `json:"postgres"`
	NATS     string         `json:"nats"`
	Redis    string         `json:"redis"`
	PIDs     map[string]int `json:"pids"`
}

// shared is the stack of this test binary. The child, when there is one, is held and not stopped: it ends
// with this process, because the kernel then closes its standard input.
var shared = sync.OnceValues(func() (*child, error) {
	raw := os.Getenv(envEndpoints)
	if raw == "" {
		return startChild()
	}
	var e endpoints
	if err := json.Unmarshal([]byte(raw), &e); err != nil {
		return nil, fmt.Errorf("decode %s: %w", envEndpoints, err)
	}
	if e.Postgres == "" || e.NATS == "" || e.Redis == "" {
		return nil, errors.New(envEndpoints + " lacks a server: it needs postgres, nats and redis")
	}
	return &child{endpoints: e}, nil
})

// servers returns the shared servers or fails the test with the command that provides them.
func servers(t testing.TB) endpoints {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatalf("no test servers: %v\nRun the tests with `make test`, which starts the servers first.", err)
	}
	return c.endpoints
}

// cleanupContext is for work in t.Cleanup, where the test's own context has ended already.
func cleanupContext(t testing.TB) context.Context { return context.WithoutCancel(t.Context()) }

// randomName makes names of databases and accounts that no other test has, also of other runs on one server.
func randomName(prefix string) string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails, by its documentation
	return prefix + hex.EncodeToString(b)
}
