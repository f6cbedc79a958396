package token

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/clock"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// The event that ends a session: its key is the session's id, its time the
// moment; the payload is not needed.
const (
	revokedSource = "auth"
	revokedType   = "session.revoked"
)

// Follower is the part of the event bus that feeds the set; *event.Bus is one.
type Follower interface {
	Follow(ctx context.Context, source, typ string, since time.Duration, fn func(*eventv1.Event), caughtUp func()) error
}

// Revocations is the set of sessions that were ended while tokens of theirs may
// still be alive. It lives in memory and is fed by Follow, so that no store has
// to be asked per call and none can revive a session by being away. It is safe
// for concurrent use.
type Revocations struct {
	clock clock.Clock
	life  time.Duration
	ready chan struct{}
	once  sync.Once

	mu     sync.RWMutex
	until  map[uuid.UUID]time.Time
	notify []func(sessionID uuid.UUID)
}

// NewRevocations makes an empty set. tokenLife is the longest life of an access
// token; a revocation is remembered that long, plus the allowed clock skew.
func NewRevocations(clk clock.Clock, tokenLife time.Duration) *Revocations {
	return &Revocations{
		clock: clk, life: tokenLife, ready: make(chan struct{}), until: make(map[uuid.UUID]time.Time),
	}
}

// Add revokes a session as of a time. Adding it again is harmless; one that is
// too old to matter is left out. Those who asked by Notify are told of a session
// once, before Add returns.
func (r *Revocations) Add(sessionID uuid.UUID, at time.Time) {
	now := r.clock.Now()
	until := at.Add(r.life + skew)
	if !now.Before(until) {
		return
	}
	r.mu.Lock()
	old, known := r.until[sessionID]
	if !known || until.After(old) {
		r.until[sessionID] = until
	}
	r.sweep(now)
	tell := r.notify
	r.mu.Unlock()
	if known {
		return
	}
	for _, fn := range tell {
		fn(sessionID)
	}
}

// sweep looks at a few entries for each one added, as remembered.put does.
func (r *Revocations) sweep(now time.Time) {
	looked := 0
	for id, until := range r.until {
		if !now.Before(until) {
			delete(r.until, id)
		}
		if looked++; looked >= sweepStep {
			return
		}
	}
}

// Revoked says whether a session was ended.
func (r *Revocations) Revoked(sessionID uuid.UUID) bool {
	now := r.clock.Now()
	r.mu.RLock()
	until, ok := r.until[sessionID]
	r.mu.RUnlock()
	return ok && now.Before(until)
}

// Notify has fn called for every session that is revoked from now on. fn must
// not block: it runs on the goroutine that reads the events.
func (r *Revocations) Notify(fn func(sessionID uuid.UUID)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A fresh slice: Add calls the old one outside the lock.
	r.notify = append(append([]func(uuid.UUID){}, r.notify...), fn)
}

// Ready is closed when the past revocations are known. Before that a revoked
// session may pass, so a process is not ready before.
func (r *Revocations) Ready() <-chan struct{} { return r.ready }

// Known is Ready as a readiness check.
func (r *Revocations) Known(context.Context) error {
	select {
	case <-r.ready:
		return nil
	default:
		return errNotKnown
	}
}

var errNotKnown = errors.New("the past revocations are not known yet")

// Follow feeds the set from the bus until ctx ends: first with all revocations
// that still matter, then with the new ones. It closes Ready in between. Run it
// once.
func (r *Revocations) Follow(ctx context.Context, bus Follower) error {
	err := bus.Follow(ctx, revokedSource, revokedType, r.life+2*skew, r.onRevoked, func() {
		r.once.Do(func() { close(r.ready) })
	})
	if err != nil {
		return fmt.Errorf("follow revocations: %w", err)
	}
	return nil
}

// onRevoked takes an event of auth. One whose key is no id names no session that
// a token could carry.
func (r *Revocations) onRevoked(ev *eventv1.Event) {
	id, err := uuid.Parse(ev.GetKey())
	if err != nil {
		return
	}
	at := r.clock.Now()
	if ev.GetTime().IsValid() {
		at = ev.GetTime().AsTime()
	}
	r.Add(id, at)
}
