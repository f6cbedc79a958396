package limit

import (
	"sync"
	"time"
)

// localKeys bounds the memory of counting alone: about 100 bytes each.
const localKeys = 50_000

// local is the count of one process, with the rules of take.lua.
type local struct {
	every time.Duration
	burst int

	mu   sync.Mutex
	paid map[string]time.Time
}

func newLocal(opts Options) *local {
	return &local{every: opts.Every, burst: opts.Burst, paid: map[string]time.Time{}}
}

func (l *local) take(key string, n int, now time.Time) Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	paid, known := l.paid[key]
	most := now.Add(l.every * time.Duration(l.burst))
	if paid.Before(now) {
		paid = now
	}
	if paid.After(most) {
		paid = most
	}
	after := paid.Add(l.every * time.Duration(n))
	if after.After(most) {
		return Decision{RetryAfter: after.Sub(most), Left: int(most.Sub(paid) / l.every)}
	}
	if !known {
		l.makeRoom(now)
	}
	l.paid[key] = after
	return Decision{Allowed: true, Left: int(most.Sub(after) / l.every)}
}

// makeRoom drops what has no effect any more, and if that is nothing, any few: a
// flood of keys then gets more than its limit, and no memory.
func (l *local) makeRoom(now time.Time) {
	if len(l.paid) < localKeys {
		return
	}
	for key, paid := range l.paid {
		if !paid.After(now) {
			delete(l.paid, key)
		}
	}
	for key := range l.paid { // maps are walked in random order
		if len(l.paid) < localKeys*9/10 {
			return
		}
		delete(l.paid, key)
	}
}
