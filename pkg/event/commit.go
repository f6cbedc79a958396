package event

import "context"

type afterCommitKey struct{}

// afterCommit collects what is to happen once the transaction of one call of
// Handle is committed. Only the goroutine of that call uses it.
type afterCommit struct{ steps []func() }

// withAfterCommit gives Handle a context that takes steps, and returns what runs
// them. A transaction that is rolled back drops its steps with its context.
func withAfterCommit(ctx context.Context) (_ context.Context, committed func()) {
	pending := &afterCommit{}
	return context.WithValue(ctx, afterCommitKey{}, pending), func() {
		for _, step := range pending.steps {
			step()
		}
	}
}

// AfterCommit has step run once the transaction that a listener's Handle was
// given is committed, before the event is acknowledged. A crash in between loses
// the step, so it may only hasten what happens anyway. False says that ctx is not
// that of a Handle, and nothing will run.
func AfterCommit(ctx context.Context, step func()) bool {
	pending, ok := ctx.Value(afterCommitKey{}).(*afterCommit)
	if ok {
		pending.steps = append(pending.steps, step)
	}
	return ok
}
