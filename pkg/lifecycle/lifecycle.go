// Package lifecycle owns the start and, above all, the end of a process.
//
// The order of the shutdown is the list of phases in this file and nothing else:
// the process says that it is not ready and waits until the balancers have
// noticed; requests are drained; listeners and jobs stop; workers finish what
// requests and listeners have left them; the relay stops (rows wait in their
// table); what they all used is closed. A phase begins when all tasks of the one
// before have returned or its time is up. The first task that fails, or that
// returns though nobody told it to, ends the whole group in the same order.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Phase is a step of the shutdown. Phases end in ascending order.
type Phase int

// The phases, in the order in which they end.
const (
	// Intake is what takes requests: RPC servers and sockets.
	Intake Phase = iota
	// Listen is what takes work by itself: listeners of events, jobs.
	Listen
	// Work is what requests and listeners hand work to, in memory.
	Work
	// Relay publishes what has been committed.
	Relay
	// Store is what all of them use: pools and connections.
	Store
	phases
)

func (p Phase) String() string {
	return [...]string{"intake", "listen", "work", "relay", "store"}[p]
}

const (
	defaultDrainDelay   = 0
	defaultPhaseTimeout = 15 * time.Second
)

// Group runs tasks and ends them phase by phase. Make it with New, add tasks,
// then call Run once. Tasks cannot be added while it runs.
type Group struct {
	log          *slog.Logger
	drainDelay   time.Duration
	phaseTimeout time.Duration
	onDrain      []func()
	tasks        [phases][]task
	closers      [phases][]closer
}

type task struct {
	name string
	run  func(context.Context) error
}

type closer struct {
	name  string
	close func(context.Context) error
}

// Option sets a property of a Group.
type Option func(*Group)

// DrainDelay is the time between "not ready" and the end of the intake: as long
// as balancers need to notice. Zero by default.
func DrainDelay(d time.Duration) Option { return func(g *Group) { g.drainDelay = d } }

// PhaseTimeout bounds each phase; 15 seconds by default. Tasks that are still
// running then are left behind, and Run returns an error that names them.
func PhaseTimeout(d time.Duration) Option { return func(g *Group) { g.phaseTimeout = d } }

// New returns an empty group.
func New(log *slog.Logger, opts ...Option) *Group {
	g := &Group{log: log, drainDelay: defaultDrainDelay, phaseTimeout: defaultPhaseTimeout}
	for _, opt := range opts {
		opt(g)
	}
	return g
}

// OnDrain calls fn when the shutdown begins, before the drain delay.
func (g *Group) OnDrain(fn func()) { g.onDrain = append(g.onDrain, fn) }

// Add gives the group a task. Its context ends when its phase is to end; it then
// finishes what it has begun and returns. An error that is not the end of its
// context ends the group.
func (g *Group) Add(p Phase, name string, run func(context.Context) error) {
	g.tasks[p] = append(g.tasks[p], task{name, run})
}

// OnStop calls fn at the end of phase p, after the tasks of p have returned, last
// added first. It is called exactly once, also when Run fails. Its context is
// bounded by the time that the phase has left.
func (g *Group) OnStop(p Phase, name string, fn func(context.Context) error) {
	g.closers[p] = append(g.closers[p], closer{name, fn})
}

// Run starts all tasks, waits for the end of ctx or for the first task that
// returns, shuts down and returns what went wrong, or nil. It returns after the
// last phase.
func (g *Group) Run(ctx context.Context) error {
	r := &running{group: g, ended: make(chan struct{})}
	// Tasks live longer than ctx: its end begins the shutdown, which ends the
	// tasks phase by phase. Its values (trace, logger) stay.
	life := context.WithoutCancel(ctx)
	for p := range phases {
		phaseCtx, cancel := context.WithCancel(life)
		r.cancel[p] = cancel
		for _, t := range g.tasks[p] {
			r.start(phaseCtx, p, t)
		}
	}
	select {
	case <-ctx.Done():
		g.log.InfoContext(ctx, "shutting down", "cause", context.Cause(ctx).Error())
	case <-r.ended:
		g.log.ErrorContext(ctx, "shutting down: a task has ended by itself")
	}
	for _, fn := range g.onDrain {
		fn()
	}
	r.wait(g.drainDelay)
	for p := range phases {
		r.end(life, p)
	}
	return errors.Join(r.errs...)
}

// running is the state of one Run.
type running struct {
	group  *Group
	cancel [phases]context.CancelFunc
	done   [phases]sync.WaitGroup

	once  sync.Once
	ended chan struct{} // closed when the first task has ended by itself

	mu    sync.Mutex
	errs  []error
	alive [phases]map[string]int // running tasks by name, for the error of a timeout
}

func (r *running) start(ctx context.Context, p Phase, t task) {
	r.mu.Lock()
	if r.alive[p] == nil {
		r.alive[p] = map[string]int{}
	}
	r.alive[p][t.name]++
	r.mu.Unlock()
	r.done[p].Go(func() {
		err := t.run(ctx)
		stopped := ctx.Err() != nil
		r.mu.Lock()
		if r.alive[p][t.name]--; r.alive[p][t.name] == 0 {
			delete(r.alive[p], t.name)
		}
		r.mu.Unlock()
		asked := stopped && errors.Is(err, context.Canceled)
		switch {
		case err != nil && !asked:
			r.fail(fmt.Errorf("%s: %w", t.name, err))
		case !stopped:
			r.fail(fmt.Errorf("%s: ended though nobody stopped it", t.name))
		}
		if !stopped {
			r.once.Do(func() { close(r.ended) })
		}
	})
}

func (r *running) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

// wait lasts d, or until a task ends by itself: then there is nothing to be
// gained by serving on.
func (r *running) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.ended:
	}
}

// end stops the tasks of p, waits for them and closes what belongs to p.
func (r *running) end(life context.Context, p Phase) {
	ctx, cancel := context.WithTimeout(life, r.group.phaseTimeout)
	defer cancel()
	r.cancel[p]()
	done := make(chan struct{})
	go func() {
		r.done[p].Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		r.fail(fmt.Errorf("phase %s: still running after %s: %v", p, r.group.phaseTimeout, r.left(p)))
	}
	for _, c := range slices.Backward(r.group.closers[p]) {
		if err := c.close(ctx); err != nil {
			r.fail(fmt.Errorf("close %s: %w", c.name, err))
		}
	}
	r.group.log.DebugContext(ctx, "phase ended", "phase", p.String())
}

func (r *running) left(p Phase) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.alive[p] {
		names = append(names, name)
	}
	return names
}

// Signals returns a context that ends at the first SIGINT or SIGTERM. The second
// one has its usual effect: it ends the process at once. Call stop when the
// signals are no longer wanted.
func Signals(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(fmt.Errorf("received the signal %q", s.String()))
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}
