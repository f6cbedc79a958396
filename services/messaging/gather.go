package messaging

import (
	"context"
	"errors"
	"sync"
)

// Why a gatherer takes nothing more.
var (
	errGathererFull   = errors.New("queue is full")
	errGathererClosed = errors.New("queue is closed")
)

// gatherer turns single requests into batches without a timer: while one batch
// is being worked on, the next one gathers. An idle gatherer hands over a single
// item at once; a busy one hands over as many as came in the meantime.
//
// It keeps the order in which items were added.
type gatherer[T any] struct {
	batch int         // most items in one batch
	bytes int         // most bytes in one batch; a single larger item passes alone
	bound int         // most items that wait
	size  func(T) int // bytes of an item; nil counts nothing
	// aside, if set, is asked with mu held for each item that is about to be taken.
	// True says that its owner keeps it for now and gives it back by giveBack.
	aside func(T) bool

	mu     sync.Mutex
	queue  []T
	held   int // items set aside, which giveBack will release
	closed bool
	wake   chan struct{}
}

func newGatherer[T any](batch, bytes, bound int, size func(T) int) *gatherer[T] {
	if size == nil {
		size = func(T) int { return 0 }
	}
	return &gatherer[T]{batch: batch, bytes: bytes, bound: bound, size: size, wake: make(chan struct{}, 1)}
}

// add puts an item at the end. It returns errGathererFull or errGathererClosed.
func (g *gatherer[T]) add(item T) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return errGathererClosed
	case len(g.queue)+g.held >= g.bound:
		return errGathererFull
	}
	g.queue = append(g.queue, item)
	g.signal()
	return nil
}

// giveBack puts items to the front, in their order, and releases as many as were
// set aside; those that are not given back were answered otherwise.
func (g *gatherer[T]) giveBack(items []T, released int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.giveBackLocked(items, released)
}

func (g *gatherer[T]) giveBackLocked(items []T, released int) {
	g.held -= released
	if len(items) > 0 {
		g.queue = append(append(make([]T, 0, len(items)+len(g.queue)), items...), g.queue...)
	}
	g.signal()
}

// length is how many items wait.
func (g *gatherer[T]) length() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue) + g.held
}

func (g *gatherer[T]) signal() {
	select {
	case g.wake <- struct{}{}:
	default: // it is awake already
	}
}

// work calls do with one batch after the other until ctx ends and everything
// that was added has been worked on; then add is refused. The context that do
// gets does not end with ctx, so that what was accepted is finished: do bounds
// its own time.
func (g *gatherer[T]) work(ctx context.Context, do func(ctx context.Context, batch []T)) {
	lasting := context.WithoutCancel(ctx)
	for {
		batch, idle := g.take(ctx)
		if len(batch) > 0 {
			do(lasting, batch)
			continue
		}
		if idle && ctx.Err() != nil {
			return
		}
		select {
		case <-g.wake:
		case <-whenIdle(ctx, idle):
		}
	}
}

// whenIdle is ctx.Done, except while items are held: then only their return wakes.
func whenIdle(ctx context.Context, idle bool) <-chan struct{} {
	if !idle {
		return nil
	}
	return ctx.Done()
}

// take removes the next batch from the front. idle says that nothing waits and
// nothing is set aside; the gatherer closes when that is so after ctx ended.
func (g *gatherer[T]) take(ctx context.Context) (batch []T, idle bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	taken, bytes := 0, 0
	for taken < len(g.queue) && len(batch) < g.batch {
		item := g.queue[taken]
		bytes += g.size(item)
		if len(batch) > 0 && bytes > g.bytes {
			break
		}
		taken++
		if g.aside != nil && g.aside(item) {
			g.held++
			continue
		}
		batch = append(batch, item)
	}
	if g.queue = g.queue[taken:]; len(g.queue) == 0 {
		g.queue = nil // lets go of what was taken
	}
	if len(batch) > 0 {
		return batch, false
	}
	idle = g.held == 0
	g.closed = g.closed || (idle && ctx.Err() != nil)
	return nil, idle
}
