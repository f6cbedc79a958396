package token

import (
	"crypto/sha256"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shards = 64
	// DefaultRemembered is how many verified tokens a Verifier keeps, about 25 MB:
	// the people of one big gateway.
	DefaultRemembered = 1 << 17
	// sweepStep is how many old entries each new one looks at. Two would keep the
	// share of dead entries below a half; four keeps it small.
	sweepStep = 4
)

// digest is the key of a token. Tokens of our size are hashed without a copy on
// the heap.
func digest(raw string) [sha256.Size]byte {
	var buf [1024]byte
	if len(raw) > len(buf) {
		return sha256.Sum256([]byte(raw))
	}
	return sha256.Sum256(buf[:copy(buf[:], raw)])
}

// remembered keeps the result of verifying a token until the token expires, by
// the SHA-256 of the token, never by the token itself. It is bounded: a full
// shard forgets what it happens to meet first, which costs one signature check.
type remembered[V any] struct {
	shards [shards]shard[V]
	limit  int // entries per shard
	// forgotten counts what forget did: what was judged before is not remembered after.
	forgotten atomic.Uint64
}

type shard[V any] struct {
	mu      sync.RWMutex
	entries map[[sha256.Size]byte]entry[V]
}

type entry[V any] struct {
	value   V
	expires time.Time
}

func newRemembered[V any](limit int) *remembered[V] {
	r := &remembered[V]{limit: max(1, limit/shards)}
	for i := range r.shards {
		r.shards[i].entries = make(map[[sha256.Size]byte]entry[V])
	}
	return r
}

func (r *remembered[V]) get(key [sha256.Size]byte, now time.Time) (V, bool) {
	s := &r.shards[key[0]%shards]
	s.mu.RLock()
	e, ok := s.entries[key]
	s.mu.RUnlock()
	if !ok || !now.Before(e.expires) {
		var zero V
		return zero, false
	}
	return e.value, true
}

// generation is taken before a value is made, for put.
func (r *remembered[V]) generation() uint64 { return r.forgotten.Load() }

// put remembers a value, unless all was forgotten since the generation: the key that
// it was checked with may be withdrawn. It sweeps a few others: the cost of
// forgetting is paid in small coins by those who make the cache grow, without a
// goroutine.
func (r *remembered[V]) put(generation uint64, key [sha256.Size]byte, value V, expires, now time.Time) {
	s := &r.shards[key[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.forgotten.Load() != generation {
		return
	}
	looked := 0
	for k, e := range s.entries { // starts anywhere
		if !now.Before(e.expires) || len(s.entries) >= r.limit {
			delete(s.entries, k)
		}
		if looked++; looked >= sweepStep {
			break
		}
	}
	s.entries[key] = entry[V]{value: value, expires: expires}
}

// forget drops everything, for a signing key that was withdrawn.
func (r *remembered[V]) forget() {
	r.forgotten.Add(1) // first: a put that misses it is over before its shard is cleared
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		clear(s.entries)
		s.mu.Unlock()
	}
}

func (r *remembered[V]) len() int {
	n := 0
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.RLock()
		n += len(s.entries)
		s.mu.RUnlock()
	}
	return n
}
