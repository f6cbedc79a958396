// Package job runs the periodic work of a service, on one of its replicas.
//
// It owns: the lease by which one replica leads (table job_lease), the record of
// when a job last ran (table job_run), and the jobs of the runtime itself
// (Partitions, PruneInbox).
//
// Invariants: one leader per service, by a row and not by a session lock, which
// means nothing behind PgBouncer. A leader that cannot renew, or whose job does not
// end, stops its jobs before another may take over. Liveness is judged by each replica's own
// stopwatch, so clocks that differ or jump elect nobody. Nor do they stop a job: one
// that a clock far ahead has noted as run in the future is due at once.
//
// A job must bear being cut off at any point and run again, and in the worst
// case (a process frozen longer than the lease) beside itself.
package job

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/clock"
)

// Job is a piece of periodic work.
type Job struct {
	// Name is unique within the service and never changes.
	Name string
	// Every is the longest time from one start to the next, by the service's
	// clock; some start up to a tenth sooner, so that the jobs of many services do
	// not all run at the same moment. A job is not run beside itself: a run that
	// takes longer delays the next.
	Every time.Duration
	// Timeout is how long one run may take, after which its context ends; zero means
	// Every, and ten minutes at least. A job that then does not return makes this
	// process give up leading, and another one runs the jobs.
	Timeout time.Duration
	// Run does it, and returns soon after ctx ends. An error is logged and
	// counted; the job is tried again after Every.
	Run func(ctx context.Context) error
}

// Runner runs the jobs of one service while this process is the leader.
type Runner struct {
	pool    *pgxpool.Pool
	service string
	clock   clock.Clock
	log     *slog.Logger
	opts    options
	holder  string
	metrics *metrics

	mu      sync.Mutex
	jobs    []Job
	running bool
	leading bool
	done    map[string]time.Time // when each job last succeeded or, before that, first started; if that is known
}

type options struct {
	lease time.Duration
	poll  time.Duration
}

// Option changes how a Runner works.
type Option func(*options)

// Lease is for how long a leader counts as alive after its last sign of life; 15
// s by default.
func Lease(d time.Duration) Option { return func(o *options) { o.lease = d } }

// Poll is how often the leader looks for jobs that are due; 1 s by default.
func Poll(d time.Duration) Option { return func(o *options) { o.poll = d } }

// New makes the runner of a service; Add jobs, then Run.
func New(pool *pgxpool.Pool, service string, c clock.Clock, log *slog.Logger, opts ...Option) *Runner {
	o := options{lease: 15 * time.Second, poll: time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	m, err := newMetrics()
	if err != nil {
		log.Error("the jobs are not measured", "error", err)
	}
	return &Runner{
		pool: pool, service: service, clock: c, log: log, opts: o, holder: uuid.NewString(), metrics: m, done: map[string]time.Time{},
	}
}

// Add registers jobs. It fails on a name that is taken, a job that can never run,
// and after Run.
func (r *Runner) Add(jobs ...Job) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		return fmt.Errorf("jobs of %s run already", r.service)
	}
	for _, j := range jobs {
		if j.Name == "" || j.Every <= 0 || j.Run == nil || j.Timeout < 0 {
			return fmt.Errorf("job %q lacks a name, an interval or work", j.Name)
		}
		for _, other := range r.jobs {
			if other.Name == j.Name {
				return fmt.Errorf("job %s of %s is there twice", j.Name, r.service)
			}
		}
		r.jobs = append(r.jobs, j)
	}
	return nil
}

// Leading tells whether this process leads at the moment.
func (r *Runner) Leading() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leading
}

func (r *Runner) setLeading(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leading = yes
}

// Run takes part in the election, and runs the jobs while it leads, until ctx
// ends; then it gives the lease back and returns nil.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	r.running = true
	jobs := r.jobs
	r.mu.Unlock()
	r.metrics.start(ctx, r.service, jobs)
	defer r.measure(ctx)()
	for ctx.Err() == nil {
		asked, ok := r.acquire(ctx)
		if !ok {
			return nil
		}
		r.setLeading(true)
		r.log.InfoContext(ctx, "leads the jobs")
		r.lead(ctx, asked, jobs)
		r.setLeading(false)
		r.log.InfoContext(ctx, "leads the jobs no longer")
	}
	r.release(ctx)
	return nil
}

// lead runs jobs until ctx ends or the lease, asked for at that time, cannot be
// renewed.
func (r *Runner) lead(ctx context.Context, asked time.Time, jobs []Job) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	group.Go(func() error {
		r.renew(ctx, asked)
		r.setLeading(false) // also while a job that does not end is waited for
		cancel()
		return nil
	})
	for _, j := range jobs {
		group.Go(func() error { r.repeat(ctx, j, cancel); return nil })
	}
	// Not one of them returns an error.
	_ = group.Wait()
}

// repeat runs one job whenever it is due. stepDown ends the leading.
func (r *Runner) repeat(ctx context.Context, j Job, stepDown func()) {
	ticker := time.NewTicker(r.opts.poll)
	defer ticker.Stop()
	known := false
	var due time.Time
	for {
		if !known {
			last, err := r.lastRun(ctx, j.Name)
			if known = err == nil; known {
				due = last.Add(j.pause())
			} else if ctx.Err() == nil {
				r.log.WarnContext(ctx, "job waits: its last run cannot be read", "job", j.Name, "error", err)
			}
		}
		// A start in the future was noted by a clock that was ahead, this one before
		// it was set right or another's: nothing keeps a job longer than Every.
		if now := r.clock.Now(); known && (!now.Before(due) || due.After(now.Add(j.Every))) {
			if r.runOnce(ctx, j, now, stepDown) {
				due = now.Add(j.pause())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// pause is the time from one start to the next.
func (j Job) pause() time.Duration { return j.Every - rand.N(j.Every/10+1) }

// timeout is how long one run may take.
func (j Job) timeout() time.Duration {
	if j.Timeout > 0 {
		return j.Timeout
	}
	return max(j.Every, 10*time.Minute)
}

// runOnce tells whether the job began; one that did not is still due.
func (r *Runner) runOnce(ctx context.Context, j Job, now time.Time, stepDown func()) (began bool) {
	// Noted before the work: a job that kills the process is not tried again at
	// once by every replica in turn.
	if err := r.noteStart(ctx, j.Name, now); err != nil {
		if ctx.Err() == nil {
			r.log.WarnContext(ctx, "job is put off: its start cannot be noted", "job", j.Name, "error", err)
			r.metrics.putOff(ctx, r.service, j.Name)
		}
		return false
	}
	started := time.Now()
	err := r.bounded(ctx, j, stepDown)
	outcome := outcomeDone
	switch {
	case err != nil && ctx.Err() != nil:
		outcome = outcomeCutOff
	case err != nil:
		outcome = outcomeFailed
		r.log.ErrorContext(ctx, "job failed", "job", j.Name, "took", time.Since(started), "error", err)
	default:
		r.log.DebugContext(ctx, "job done", "job", j.Name, "took", time.Since(started))
	}
	ended := r.clock.Now()
	if err == nil {
		r.succeeded(j.Name, ended)
	}
	r.metrics.ran(ctx, r.service, j.Name, outcome, time.Since(started))
	if nerr := r.noteEnd(ctx, j.Name, ended, err); nerr != nil && ctx.Err() == nil {
		r.log.WarnContext(ctx, "end of job cannot be noted", "job", j.Name, "error", nerr)
	}
	return true
}

// bounded runs a job for its time. One that goes on after its context has ended
// keeps this process from leading: its lease is renewed no more, and runs out
// before another process takes over. The other jobs are cut off and go on there.
func (r *Runner) bounded(ctx context.Context, j Job, stepDown func()) error {
	running, cancel := context.WithTimeout(ctx, j.timeout())
	defer cancel()
	hangs := time.AfterFunc(j.timeout()+r.opts.lease, func() {
		r.log.ErrorContext(ctx, "job does not end: another replica shall lead", "job", j.Name, "timeout", j.timeout())
		stepDown()
	})
	defer hangs.Stop()
	return call(running, j)
}

// call runs a job; its panic is an error.
func call(ctx context.Context, j Job) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return j.Run(ctx)
}
