package gateway

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// wheelSlots times the resolution is the span of the wheel; what lies further
// ahead is looked at once per turn.
const wheelSlots = 256

// wheel wakes connections at their next deadline: authentication, ping, silence,
// expiry, resync, drain. One goroutine and one ticker per shard serve all of
// them: a runtime timer per connection costs a third of a core at 100,000 idle
// connections.
//
// It measures waiting in the runtime's monotonic time, as late as one resolution.
type wheel struct {
	resolution time.Duration
	start      time.Time
	shards     []*wheelShard
	next       atomic.Uint32
}

type wheelShard struct {
	mu     sync.Mutex
	turned int64 // ticks whose slots have been emptied
	slots  [wheelSlots]*wheelEntry
}

// wheelOwner is woken by the wheel. It returns after which time it wants to be
// woken again; zero means never. It must not block.
type wheelOwner interface {
	wake() time.Duration
}

// wheelEntry is the place of one owner in the wheel, embedded in the owner. Its
// fields belong to the shard's lock.
type wheelEntry struct {
	prev, next *wheelEntry
	owner      wheelOwner
	shard      *wheelShard
	due        int64 // tick; 0 = not in the wheel
	gone       bool  // removed for good
}

func newWheel(resolution time.Duration) *wheel {
	w := &wheel{resolution: resolution, start: time.Now()}
	for range max(1, runtime.GOMAXPROCS(0)) {
		w.shards = append(w.shards, &wheelShard{})
	}
	return w
}

// run turns the wheel until ctx ends.
func (w *wheel) run(ctx context.Context) {
	var shards sync.WaitGroup
	for _, shard := range w.shards {
		shards.Go(func() {
			ticker := time.NewTicker(w.resolution)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
					w.turn(shard, w.ticks(time.Since(w.start)))
				}
			}
		})
	}
	shards.Wait()
}

func (w *wheel) ticks(d time.Duration) int64 { return int64(d / w.resolution) }

// add puts an owner's entry into the wheel for the first time.
func (w *wheel) add(e *wheelEntry, owner wheelOwner, after time.Duration) {
	e.owner = owner
	e.shard = w.shards[int(w.next.Add(1))%len(w.shards)]
	w.within(e, after)
}

// within makes sure that the owner is woken in that time at the latest. It may
// be called from anywhere, wake included, at any time after add.
func (w *wheel) within(e *wheelEntry, after time.Duration) {
	due := w.dueIn(after)
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	if e.gone || (e.due != 0 && e.due <= due) {
		return
	}
	e.shard.unlink(e)
	e.shard.link(e, due)
}

func (w *wheel) dueIn(after time.Duration) int64 {
	return w.ticks(time.Since(w.start)+after) + 1
}

// remove takes the entry out for good. wake may be running for the last time.
func (w *wheel) remove(e *wheelEntry) {
	if e.shard == nil {
		return
	}
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	e.gone = true
	e.shard.unlink(e)
}

// turn wakes everybody who is due at tick now or before. Owners are woken
// without the lock.
func (w *wheel) turn(s *wheelShard, now int64) {
	for _, e := range s.collect(now) {
		if after := e.owner.wake(); after > 0 {
			w.within(e, after)
		}
	}
}

func (s *wheelShard) collect(now int64) []*wheelEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	// After a long stop (a suspended machine) one full turn sees every slot.
	first := max(s.turned+1, now-wheelSlots+1)
	var due []*wheelEntry
	for tick := first; tick <= now; tick++ {
		for e := s.slots[tick%wheelSlots]; e != nil; {
			following := e.next
			if e.due <= now {
				s.unlink(e)
				due = append(due, e)
			}
			e = following
		}
	}
	s.turned = now
	return due
}

func (s *wheelShard) link(e *wheelEntry, due int64) {
	// A tick that was turned already would be seen a whole turn later.
	e.due = max(due, s.turned+1)
	slot := &s.slots[e.due%wheelSlots]
	e.prev, e.next = nil, *slot
	if *slot != nil {
		(*slot).prev = e
	}
	*slot = e
}

func (s *wheelShard) unlink(e *wheelEntry) {
	if e.due == 0 {
		return
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.slots[e.due%wheelSlots] = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.prev, e.next, e.due = nil, nil, 0
}
