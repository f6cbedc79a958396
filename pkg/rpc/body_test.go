package rpc_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
)

// readerFunc is a body that does what a test says.
type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// dialTwo makes two nodes and the way to both.
func dialTwo(t *testing.T) rpc.Backend {
	t.Helper()
	a, b := startNode(t, "a", "127.0.0.1:0"), startNode(t, "b", "127.0.0.1:0")
	backend := dialNodes(t, "http://"+a.addr+",http://"+b.addr, rpc.RemoteConfig{})
	require.Len(t, tally(t, backend, 4), 2)
	return backend
}

// What comes in place of a body is up to whoever calls the gateway. It must not
// keep anybody from a replica that is well.
func TestBodyIsNotTheEndpointsFault(t *testing.T) {
	t.Parallel()
	t.Run("CannotBeRead", func(t *testing.T) {
		t.Parallel()
		backend := dialTwo(t)
		broken := errors.New("too large")
		for range 3 {
			_, err := ask(t.Context(), backend, "/", readerFunc(func([]byte) (int, error) { return 0, broken }))
			require.ErrorIs(t, err, broken)
		}
		require.Equal(t, map[string]int{"a": 2, "b": 2}, tally(t, backend, 4))
	})
	t.Run("NeverEnds", func(t *testing.T) {
		t.Parallel()
		backend := dialTwo(t)
		body, writer := io.Pipe()
		t.Cleanup(func() { _ = writer.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), 1100*time.Millisecond)
		defer cancel()
		_, err := ask(ctx, backend, "/", body)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, map[string]int{"a": 2, "b": 2}, tally(t, backend, 4))
	})
}

// An endpoint that takes no more of a body is put aside: two calls in a row then go
// to the other one, which they otherwise never do.
func TestBodyDoesNotExcuseTheEndpoint(t *testing.T) {
	t.Parallel()
	deaf, well := startNode(t, "deaf", "127.0.0.1:0"), startNode(t, "well", "127.0.0.1:0")
	deaf.deaf.Store(true)
	backend := dialNodes(t, "http://"+deaf.addr+",http://"+well.addr, rpc.RemoteConfig{})
	large := strings.Repeat("x", 2<<20) // above what a connection takes unread
	answered := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		_, err := ask(ctx, backend, "/", strings.NewReader(large))
		return err == nil
	}
	require.Eventually(t, func() bool {
		first := answered()
		return answered() && first
	}, time.Minute, time.Millisecond)
}
