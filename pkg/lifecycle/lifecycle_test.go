package lifecycle_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal notes what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) read() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.lines...)
}

func (j *journal) task(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		j.note(name)
		return ctx.Err()
	}
}

func (j *journal) closer(name string) func(context.Context) error {
	return func(context.Context) error { j.note(name); return nil }
}

func TestPhasesEndInOrder(t *testing.T) {
	t.Parallel()
	j := &journal{}
	g := lifecycle.New(slog.New(slog.DiscardHandler), lifecycle.DrainDelay(time.Millisecond))
	// Added in the wrong order on purpose: only the phase decides.
	g.OnStop(lifecycle.Store, "pool", j.closer("pool closed"))
	g.OnStop(lifecycle.Store, "inner", j.closer("inner closed"))
	g.Add(lifecycle.Relay, "relay", j.task("relay"))
	g.Add(lifecycle.Work, "worker", j.task("worker"))
	g.Add(lifecycle.Intake, "rpc", j.task("rpc"))
	g.Add(lifecycle.Listen, "listeners", j.task("listeners"))
	g.OnDrain(func() { j.note("not ready") })

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, g.Run(ctx))
	require.Equal(t, []string{"not ready", "rpc", "listeners", "worker", "relay", "inner closed", "pool closed"}, j.read())
}

func TestLaterPhasesRunWhileEarlierOnesFinish(t *testing.T) {
	t.Parallel()
	g := lifecycle.New(slog.New(slog.DiscardHandler))
	request, served := make(chan struct{}), make(chan struct{})
	g.Add(lifecycle.Work, "worker", func(ctx context.Context) error {
		select {
		case <-request:
			close(served)
		case <-ctx.Done():
			return errors.New("the worker stopped before the request was done")
		}
		<-ctx.Done()
		return nil
	})
	g.Add(lifecycle.Intake, "rpc", func(ctx context.Context) error {
		<-ctx.Done()
		close(request) // a call that is finished during the drain
		<-served
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, g.Run(ctx))
}

func TestAFailingTaskEndsTheGroup(t *testing.T) {
	t.Parallel()
	j := &journal{}
	boom := errors.New("boom")
	g := lifecycle.New(slog.New(slog.DiscardHandler), lifecycle.DrainDelay(time.Hour))
	g.Add(lifecycle.Intake, "rpc", j.task("rpc"))
	g.Add(lifecycle.Listen, "listeners", func(context.Context) error { return boom })
	g.OnStop(lifecycle.Store, "pool", j.closer("pool closed"))

	err := g.Run(t.Context())
	require.ErrorIs(t, err, boom)
	require.ErrorContains(t, err, "listeners: boom")
	require.Equal(t, []string{"rpc", "pool closed"}, j.read())
}

func TestATaskThatJustEndsIsAFault(t *testing.T) {
	t.Parallel()
	g := lifecycle.New(slog.New(slog.DiscardHandler))
	g.Add(lifecycle.Relay, "relay", func(context.Context) error { return nil })
	require.ErrorContains(t, g.Run(t.Context()), "relay: ended though nobody stopped it")
}

func TestAPhaseThatHangsIsNamedAndLeftBehind(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	j := &journal{}
	g := lifecycle.New(slog.New(slog.DiscardHandler), lifecycle.PhaseTimeout(20*time.Millisecond))
	g.Add(lifecycle.Work, "stubborn", func(context.Context) error { <-release; return nil })
	g.OnStop(lifecycle.Store, "pool", j.closer("pool closed"))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, g.Run(ctx), "phase work: still running after 20ms: [stubborn]")
	require.Equal(t, []string{"pool closed"}, j.read())
}

func TestErrorsOfClosersAreTold(t *testing.T) {
	t.Parallel()
	g := lifecycle.New(slog.New(slog.DiscardHandler))
	g.OnStop(lifecycle.Store, "pool", func(context.Context) error { return errors.New("busy") })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.EqualError(t, g.Run(ctx), "close pool: busy")
}

// Not parallel: the signal goes to the whole test process.
func TestSignalsEndTheContext(t *testing.T) { //nolint:paralleltest // see above
	ctx, stop := lifecycle.Signals(t.Context())
	defer stop()
	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGTERM))
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("SIGTERM did not end the context")
	}
	require.ErrorContains(t, context.Cause(ctx), "terminated")
}
