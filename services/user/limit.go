package user

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// searchesKept bounds the memory of the limit: about 100 bytes each.
const searchesKept = 100_000

// searches limits how often a person searches, at this replica: a bucket of a
// minute's searches that fills up again evenly.
type searches struct {
	perMinute int
	clock     clock.Clock

	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	spent float64
	at    time.Time
}

func newSearches(perMinute int, c clock.Clock) *searches {
	return &searches{perMinute: perMinute, clock: c, buckets: map[string]bucket{}}
}

// take counts a search or refuses it.
func (l *searches) take(_ context.Context, person string) error {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.now(l.buckets[person], now)
	if over := b.spent + 1 - float64(l.perMinute); over > 0 {
		wait := time.Duration(over / float64(l.perMinute) * float64(time.Minute))
		return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED,
			"too many searches"), wait)
	}
	b.spent++
	if _, known := l.buckets[person]; !known && len(l.buckets) >= searchesKept {
		l.makeRoom(now)
	}
	l.buckets[person] = b
	return nil
}

// now is a bucket after what has flowed back since it was last used.
func (l *searches) now(b bucket, now time.Time) bucket {
	back := now.Sub(b.at).Minutes() * float64(l.perMinute)
	return bucket{spent: max(0, b.spent-max(0, back)), at: now}
}

// makeRoom forgets the full ones, else any one.
func (l *searches) makeRoom(now time.Time) {
	for person, b := range l.buckets {
		if l.now(b, now).spent == 0 {
			delete(l.buckets, person)
		}
	}
	for person := range l.buckets {
		if len(l.buckets) < searchesKept {
			return
		}
		delete(l.buckets, person)
	}
}
