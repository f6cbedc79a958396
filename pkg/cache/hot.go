package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/rueidis"
)

// Options describe a cache. All fields without "may be" have to be set.
type Options[K comparable, V any] struct {
	// Name is part of the keys in Redis and names the cache in metrics:
	// "user.profile". It never changes while replicas of two releases run: they
	// have to invalidate each other's values.
	Name string
	// TTL is the longest that a value is kept; a tenth less for some, so that what
	// was filled together does not end together. It bounds what a deployment's own
	// faults can do (see Cache).
	TTL time.Duration
	// Key is the text of a key, unique within the cache.
	Key func(K) string
	// Encode and Decode turn a value into bytes and back. A value that Decode
	// refuses is forgotten and read from the source: releases may differ.
	Encode func(V) ([]byte, error)
	Decode func([]byte) (V, error)
	// Load reads the source, and leaves out what does not exist. It must see every
	// change that was committed before it was called: the primary, no replica, and
	// no transaction that began earlier. Of keys that do not exist nothing is kept.
	Load func(ctx context.Context, keys []K) (map[K]V, error)
	// Constant says that the value of a key never changes: then it needs no lease, and
	// Invalidate only saves memory. May be false.
	Constant bool
	// Patience is the longest wait for Redis before the source is asked; may be 0:
	// half a second. A server that is gone says so at once; this is for one that
	// hangs.
	Patience time.Duration
	// Loads is how many calls of Load run at once in this process, also while Redis
	// is away and all reads go to the source; may be 0: 32.
	Loads int
}

const (
	// pause is for how long Redis is left alone after it failed: otherwise every
	// read would wait for a server that hangs.
	pause = 500 * time.Millisecond
	// warnEvery keeps an outage from filling the log.
	warnEvery = 10 * time.Second
	// leaseLife bounds how long a process that dies while it loads keeps others
	// from filling the value. They load meanwhile; nobody waits.
	leaseLife = 5 * time.Second
	// mostBytes of one value are kept; more is not worth its way through Redis.
	mostBytes = 256 << 10
	// The defaults of Options.
	defaultLoads    = 32
	defaultPatience = 500 * time.Millisecond
)

// What a key holds in Redis: a value, or the lease of the process that loads it,
// told apart by their first byte.
const (
	markValue = 'v'
	markLease = 'l'
)

// fillScript puts a value in the place of the lease that it was loaded under; an
// empty value gives the lease back. KEYS[1]; ARGV: lease, value, ms.
const fillScript = `if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1`

// Cache keeps values of a source in Redis. It is safe for concurrent use, by any
// number of processes.
//
// A read that begins after Invalidate has returned nil gives no older value than
// the source had when Invalidate was called. That holds because a value gets into
// Redis only in the place of a lease that was taken before the value was loaded,
// and Invalidate removes leases as well as values: whatever was loaded before is
// refused afterwards, however late it comes. Calls of one process that miss
// together share a load only if Redis still shows its lease to each of them.
//
// Whoever changes the source calls Invalidate after the commit, and once more in a
// listener of the event that tells of the change: the first makes one's own change
// visible at once, the second is what a crash between commit and Invalidate, or a
// Redis that was away, cannot prevent.
//
// What breaks the promise is a Redis that takes back an invalidation it has
// acknowledged: one that restarts from an old file on disk, or whose replica, which
// had not heard of it, becomes the primary. Run it without persistence; the TTL
// bounds the rest.
type Cache[K comparable, V any] struct {
	opts    Options[K, V]
	redis   rueidis.Client // nil: none
	log     *slog.Logger
	metrics *instruments
	slots   chan struct{}

	// Leases are this process's name and a number.
	process string
	leases  atomic.Uint64
	// awayUntil is when Redis is tried again, warned when that was last told, on
	// this process's stopwatch.
	awayUntil, warned atomic.Int64
	started           time.Time

	mu      sync.Mutex
	flights map[string]*flight[V] // by lease
}

// flight is one key that is being loaded under a lease.
type flight[V any] struct {
	done  chan struct{} // closed when the fields below are set
	value V
	there bool
	err   error
}

// New makes a cache. redis may be nil: every read then goes to the source.
func New[K comparable, V any](redis rueidis.Client, log *slog.Logger, opts Options[K, V]) (*Cache[K, V], error) {
	switch {
	case opts.Name == "":
		return nil, errors.New("a cache has no name")
	case opts.TTL < time.Second:
		return nil, fmt.Errorf("cache %s: a TTL of %s: nothing is cached without one of a second or more", opts.Name, opts.TTL)
	case opts.Key == nil || opts.Encode == nil || opts.Decode == nil || opts.Load == nil:
		return nil, fmt.Errorf("cache %s lacks a function", opts.Name)
	}
	if opts.Loads <= 0 {
		opts.Loads = defaultLoads
	}
	if opts.Patience <= 0 {
		opts.Patience = defaultPatience
	}
	m, err := newInstruments(opts.Name)
	if err != nil {
		return nil, fmt.Errorf("measure cache %s: %w", opts.Name, err)
	}
	return &Cache[K, V]{
		opts: opts, redis: redis, log: log.With("cache", opts.Name), metrics: m, slots: make(chan struct{}, opts.Loads),
		process: string(markLease) + uuid.NewString(), started: time.Now(), flights: map[string]*flight[V]{},
	}, nil
}

// Get returns the value of a key; false says that there is none. What it returns
// may be shared with other callers and must not be changed. The error is that of
// Load, or of ctx: Redis causes none.
func (c *Cache[K, V]) Get(ctx context.Context, key K) (V, bool, error) {
	all, err := c.GetMany(ctx, []K{key})
	value, ok := all[key]
	return value, ok, err
}

// GetMany is Get of many keys at once; keys that do not exist are left out.
func (c *Cache[K, V]) GetMany(ctx context.Context, keys []K) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	if len(keys) == 0 {
		return found, nil
	}
	asked := distinct(keys)
	if !c.reachable() {
		return found, c.load(ctx, asked, found, away)
	}
	looked := c.look(ctx, asked, found)
	if len(looked.foreign) > 0 {
		if err := c.load(ctx, looked.foreign, found, miss); err != nil {
			return found, err
		}
	}
	if len(looked.unknown) > 0 {
		if err := c.load(ctx, looked.unknown, found, away); err != nil {
			return found, err
		}
	}
	if len(looked.absent) > 0 && c.opts.Constant {
		if err := c.keep(ctx, looked.absent, found); err != nil {
			return found, err
		}
	} else if len(looked.absent) > 0 {
		if err := c.fill(ctx, looked.absent, found); err != nil {
			return found, err
		}
	}
	return found, c.join(ctx, looked.shared, found)
}

// Invalidate has the keys forgotten. Call it after the commit of what changes
// them. nil means that no read that begins from now on gives an older value; an
// error, that one may, until the TTL has passed or a later call succeeds. It wraps
// ErrAway.
//
// It waits for Redis no longer than Patience, and not at all while Redis is left
// alone: the change is committed, and whoever makes it must not be held up by a
// cache. What has to be certain is tried again by an event's listener.
func (c *Cache[K, V]) Invalidate(ctx context.Context, keys ...K) error {
	if c.redis == nil || len(keys) == 0 {
		return nil
	}
	if !c.reachable() {
		c.metrics.forgot(ctx, len(keys), ErrAway)
		return fmt.Errorf("invalidate %s: %w", c.opts.Name, ErrAway)
	}
	waiting, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	left := distinct(keys)
	var err error
	for range 2 { // a connection that broke while nobody used it fails once
		if left, err = c.forget(waiting, left); err == nil || waiting.Err() != nil {
			break
		}
	}
	c.metrics.forgot(ctx, len(keys), err)
	if err != nil {
		c.rest(ctx, err)
		return fmt.Errorf("invalidate %s: %w: %w", c.opts.Name, ErrAway, err)
	}
	return nil
}

// forget deletes keys and returns those of which it is not certain.
func (c *Cache[K, V]) forget(ctx context.Context, keys []K) (left []K, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	commands := make(rueidis.Commands, 0, len(keys))
	for _, k := range keys {
		commands = append(commands, pinned(c.redis.B().Del().Key(c.key(k)).Build()))
	}
	for i, r := range c.redis.DoMulti(ctx, commands...) {
		if e := r.Error(); e != nil {
			left, err = append(left, keys[i]), e
		}
	}
	return left, err
}

// pinned keeps a command out of the client's pool: the one for clusters gives it
// back while the writer of a connection that has just broken still reads it.
func pinned(cmd rueidis.Completed) rueidis.Completed { return cmd.Pin() }

func (c *Cache[K, V]) key(k K) string { return "cache:" + c.opts.Name + ":" + c.opts.Key(k) }

func (c *Cache[K, V]) newLease() string {
	return c.process + "." + strconv.FormatUint(c.leases.Add(1), 36)
}

// reachable tells whether Redis is worth a try.
func (c *Cache[K, V]) reachable() bool {
	return c.redis != nil && int64(time.Since(c.started)) >= c.awayUntil.Load()
}

// rest leaves Redis alone for a while after an error, unless the caller itself ran
// out of time.
func (c *Cache[K, V]) rest(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	now := int64(time.Since(c.started))
	c.awayUntil.Store(now + int64(pause))
	if warned := c.warned.Load(); (warned == 0 || now-warned > int64(warnEvery)) && c.warned.CompareAndSwap(warned, now) {
		c.log.WarnContext(ctx, "Redis cannot be asked; reading from the source", "error", err)
	}
}

// distinct returns the keys without repetitions, in their order.
func distinct[K comparable](keys []K) []K {
	if len(keys) == 1 {
		return keys
	}
	seen := make(map[K]struct{}, len(keys))
	out := make([]K, 0, len(keys))
	for _, k := range keys {
		if _, ok := seen[k]; !ok {
			seen[k] = struct{}{}
			out = append(out, k)
		}
	}
	return out
}
