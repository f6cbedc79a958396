package rpc_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
)

// A process that hangs accepts connections and never answers. The calls that it
// gets are few, and it is used again when it answers.
func TestHangingNodeGetsFewCalls(t *testing.T) {
	t.Parallel()
	hung, well := startNode(t, "hung", "127.0.0.1:0"), startNode(t, "well", "127.0.0.1:0")
	close(well.block)
	dialer, err := rpc.Remote(map[string]string{"auth": "http://" + hung.addr + ",http://" + well.addr}, rpc.RemoteConfig{})
	require.NoError(t, err)
	t.Cleanup(dialer.Close)
	backend := dialer.Backend("auth")
	call := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 1100*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, backend.URL+"/wait", http.NoBody)
		if err != nil {
			return false
		}
		res, err := backend.HTTP.Do(req)
		if err != nil {
			return false
		}
		return res.Body.Close() == nil
	}
	require.Eventually(t, func() bool { return !call() }, 10*time.Second, time.Millisecond, "it is noticed by a call that gets no answer")

	before := hung.calls.Load()
	var answered atomic.Int32
	var callers sync.WaitGroup
	const calls = 200
	for range calls {
		callers.Go(func() {
			if call() {
				answered.Add(1)
			}
		})
	}
	callers.Wait()
	require.LessOrEqual(t, hung.calls.Load()-before, int32(5), "single calls find out whether it is back")
	require.GreaterOrEqual(t, answered.Load(), int32(calls-5))

	close(hung.block)
	before = hung.calls.Load()
	require.Eventually(t, func() bool { return call() && hung.calls.Load() > before+10 }, 20*time.Second, time.Millisecond, "it gets calls again")
}

// What froze gets no calls beyond a few, before anybody's patience has ended.
func TestFrozenNodeHoldsUpFewCalls(t *testing.T) {
	t.Parallel()
	frozen, well := startNode(t, "frozen", "127.0.0.1:0"), startNode(t, "well", "127.0.0.1:0")
	close(well.block)
	dialer, err := rpc.Remote(map[string]string{"auth": "http://" + frozen.addr + ",http://" + well.addr}, rpc.RemoteConfig{})
	require.NoError(t, err)
	t.Cleanup(dialer.Close)
	backend := dialer.Backend("auth")
	var answered atomic.Int32
	var callers sync.WaitGroup
	const calls = 200
	for n := range int32(calls) {
		callers.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, backend.URL+"/wait", http.NoBody)
			if err != nil {
				return
			}
			res, err := backend.HTTP.Do(req)
			if err == nil && res.Body.Close() == nil {
				answered.Add(1)
			}
		})
		require.Eventually(t, func() bool { return answered.Load()+frozen.calls.Load() > n }, 10*time.Second, time.Millisecond)
	}
	require.LessOrEqual(t, frozen.calls.Load(), int32(12))
	close(frozen.block)
	callers.Wait()
	require.EqualValues(t, calls, answered.Load())
}
