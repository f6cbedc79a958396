package event

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/clock"
)

// InboxKeep is for how long inbox rows are kept: longer than an event can live
// in outbox, stream and dead letters together (3 + 3 + 14 days by default). A
// listener of mode Once refuses older events loudly: nobody would know whether
// they were done.
const InboxKeep = 30 * 24 * time.Hour

// Listeners runs the listeners of one service: a durable consumer for each,
// shared by all replicas.
type Listeners struct {
	service string
	bus     *Bus
	pool    *pgxpool.Pool
	clock   clock.Clock
	log     *slog.Logger
	opts    listenerOptions
	slots   chan struct{}

	mu        sync.Mutex
	listeners []Listener
	running   bool
}

type listenerOptions struct {
	maxAttempts  int
	backoff      func(attempt int) time.Duration
	concurrency  int
	timeout      time.Duration
	heartbeat    time.Duration
	unknownWait  time.Duration
	inboxKeep    time.Duration
	measureEvery time.Duration
}

// Option changes how Listeners works.
type Option func(*listenerOptions)

// MaxAttempts is after how many failures an event is parked; 8 by default.
func MaxAttempts(n int) Option { return func(o *listenerOptions) { o.maxAttempts = n } }

// Backoff gives the wait after the failure with that number, counted from 1. The
// default doubles from 200 ms up to 30 s, with jitter.
func Backoff(fn func(attempt int) time.Duration) Option {
	return func(o *listenerOptions) { o.backoff = fn }
}

// Concurrency is how many events the service works on at once; 8 by default.
// Each takes a connection of the pool.
func Concurrency(n int) Option { return func(o *listenerOptions) { o.concurrency = n } }

// HandleTimeout bounds one call of Handle with its commit; 15 s by default. It
// must stay below the 30 s after which JetStream delivers again.
func HandleTimeout(d time.Duration) Option { return func(o *listenerOptions) { o.timeout = d } }

// Heartbeat is how often the server says that a consumer lives; two missed ones
// make the listener look after its consumer. 3 s by default.
func Heartbeat(d time.Duration) Option { return func(o *listenerOptions) { o.heartbeat = d } }

// MeasureEvery is how often the state of consumers and dead letters is asked for;
// 15 s by default. Every replica asks: a few small requests per listener and minute.
func MeasureEvery(d time.Duration) Option { return func(o *listenerOptions) { o.measureEvery = d } }

// UnknownWait is after how long an event with an unknown payload is offered
// again; 10 s by default.
func UnknownWait(d time.Duration) Option { return func(o *listenerOptions) { o.unknownWait = d } }

// NewListeners makes the set of listeners of a service; Add them, then Run.
func NewListeners(service string, bus *Bus, pool *pgxpool.Pool, c clock.Clock, log *slog.Logger, opts ...Option) *Listeners {
	o := listenerOptions{
		maxAttempts: 8,
		backoff:     defaultBackoff,
		concurrency: 8,
		timeout:     15 * time.Second,
		heartbeat:   3 * time.Second,
		unknownWait: 10 * time.Second,
		inboxKeep:   InboxKeep,

		measureEvery: 15 * time.Second,
	}
	for _, opt := range opts {
		opt(&o)
	}
	return &Listeners{
		service: service, bus: bus, pool: pool, clock: c, log: log, opts: o,
		slots: make(chan struct{}, max(1, o.concurrency)),
	}
}

// Add registers listeners. It fails on a name that is taken and after Run.
func (ls *Listeners) Add(listeners ...Listener) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.running {
		return fmt.Errorf("listeners of %s run already", ls.service)
	}
	for _, l := range listeners {
		if l.Name == "" {
			l.Name = l.Type
		}
		if err := l.check(); err != nil {
			return err
		}
		for _, other := range ls.listeners {
			if durable(ls.service, other.Name) == durable(ls.service, l.Name) {
				return fmt.Errorf("listener %s of %s is there twice", l.Name, ls.service)
			}
		}
		ls.listeners = append(ls.listeners, l)
	}
	return nil
}

// Run takes events until ctx ends, then lets the calls in progress finish and
// returns nil. What is not acknowledged comes again, here or at another replica.
func (ls *Listeners) Run(ctx context.Context) error {
	ls.mu.Lock()
	ls.running = true
	listeners := ls.listeners
	ls.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	consumers := make([]*consumer, 0, len(listeners))
	for _, l := range listeners {
		c := &consumer{ls: ls, l: l, log: ls.log.With("listener", l.Name), failures: map[string]int{}}
		consumers = append(consumers, c)
		group.Go(func() error { return c.run(ctx) })
	}
	group.Go(func() error { return ls.measure(ctx, consumers) })
	return group.Wait()
}
