// Package clock owns the notion of "now".
//
// Everything that decides by time takes a Clock, so that a test can move it and
// so that one process of a test system can run hours ahead of another. Only
// instants come from a Clock: waiting (Pause, timers, tickers, deadlines of calls)
// uses the runtime's monotonic time, which no Clock changes. SQL never asks the
// database for the time; it gets an instant from a Clock as a parameter.
package clock

import (
	"sync"
	"time"
)

// Clock tells the time. Implementations are safe for concurrent use.
type Clock interface {
	// Now returns the present instant in UTC, rounded down to the microsecond,
	// which is what PostgreSQL keeps: an instant is equal to itself after it
	// was stored and read.
	Now() time.Time
}

// System returns the clock of the machine.
func System() Clock { return system{} }

type system struct{}

func (system) Now() time.Time { return stored(time.Now()) }

// Offset returns a clock that runs d ahead of c (behind it, when d is negative).
// A zero d returns c itself.
func Offset(c Clock, d time.Duration) Clock {
	if d == 0 {
		return c
	}
	return offset{of: c, by: d}
}

type offset struct {
	of Clock
	by time.Duration
}

func (o offset) Now() time.Time { return o.of.Now().Add(o.by) }

// Fake is a clock that stands still until it is told to move.
type Fake struct {
	mu  sync.Mutex
	now time.Time
}

// NewFake returns a clock that stands at the given instant.
func NewFake(at time.Time) *Fake { return &Fake{now: stored(at)} }

// Now returns the instant at which the clock stands.
func (f *Fake) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// Advance moves the clock by d, backwards when d is negative.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = stored(f.now.Add(d))
}

// Set moves the clock to the given instant.
func (f *Fake) Set(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = stored(at)
}

func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
