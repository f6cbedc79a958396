package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// looks is what Redis said of the keys that it has no value of.
type looks[K comparable, V any] struct {
	// absent keys can be loaded under a lease.
	absent []K
	// shared keys are being loaded by this process, under the lease that Redis shows.
	shared []waiting[K, V]
	// foreign keys are being loaded by another process, whose load nobody here waits
	// for: each call reads them itself, of all at once no more than Options.Loads.
	foreign []K
	// unknown keys: Redis did not answer.
	unknown []K
}

type waiting[K comparable, V any] struct {
	key    K
	flight *flight[V]
}

// look asks Redis for the keys and puts what it has into found.
func (c *Cache[K, V]) look(ctx context.Context, keys []K, found map[K]V) looks[K, V] {
	var out looks[K, V]
	commands := make(rueidis.Commands, 0, len(keys))
	for _, k := range keys {
		commands = append(commands, pinned(c.redis.B().Get().Key(c.key(k)).Build()))
	}
	asking, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	hits := 0
	for i, r := range c.redis.DoMulti(asking, commands...) {
		raw, err := r.AsBytes()
		switch {
		case rueidis.IsRedisNil(err):
			out.absent = append(out.absent, keys[i])
		case err != nil:
			out.unknown = append(out.unknown, keys[i])
			c.rest(ctx, err)
		case len(raw) > 0 && raw[0] == markValue:
			value, err := c.opts.Decode(raw[1:])
			if err != nil {
				out.foreign = append(out.foreign, c.unreadable(ctx, keys[i], err))
				continue
			}
			found[keys[i]] = value
			hits++
		default:
			if f := c.flight(string(raw)); f != nil {
				out.shared = append(out.shared, waiting[K, V]{keys[i], f})
			} else {
				out.foreign = append(out.foreign, keys[i])
			}
		}
	}
	c.metrics.count(ctx, hit, hits)
	return out
}

// unreadable forgets a value that another release has written.
func (c *Cache[K, V]) unreadable(ctx context.Context, key K, cause error) K {
	c.log.DebugContext(ctx, "a value cannot be read and is forgotten", "error", cause)
	if _, err := c.forget(ctx, []K{key}); err != nil {
		c.rest(ctx, err)
	}
	return key
}

// load reads keys from the source and puts them into found, not into Redis.
func (c *Cache[K, V]) load(ctx context.Context, keys []K, found map[K]V, how result) error {
	loaded, err := c.source(ctx, keys)
	if err != nil {
		c.metrics.count(ctx, failed, len(keys))
		return err
	}
	maps.Copy(found, loaded)
	c.metrics.count(ctx, how, len(keys))
	return nil
}

// source calls Load when there is room for one more.
func (c *Cache[K, V]) source(ctx context.Context, keys []K) (map[K]V, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.slots }()
	return c.opts.Load(ctx, keys)
}

// leased is a key that this call loads under a lease.
type leased[K comparable, V any] struct {
	key    K
	lease  string
	flight *flight[V]
}

// fill takes leases, loads the keys and puts them into Redis in the places of the
// leases.
func (c *Cache[K, V]) fill(ctx context.Context, keys []K, found map[K]V) error {
	mine, others := c.take(ctx, keys)
	defer c.land(mine)
	settled := false
	settle := func(loaded map[K]V, err error) {
		settled = true
		for _, l := range mine {
			l.flight.value, l.flight.there = loaded[l.key]
			l.flight.err = err
			close(l.flight.done)
		}
	}
	defer func() {
		if !settled { // Load has panicked: nobody may wait for it
			settle(nil, errNoLease)
		}
	}()
	all := others
	for _, l := range mine {
		all = append(all, l.key)
	}
	loaded, err := c.source(ctx, all)
	settle(loaded, err)
	if err != nil {
		c.metrics.count(ctx, failed, len(all))
		// Nobody has to wait for the ends of the leases.
		c.put(ctx, mine, func(leased[K, V]) []byte { return nil })
		return err
	}
	maps.Copy(found, loaded)
	c.metrics.count(ctx, miss, len(all))
	c.put(ctx, mine, func(l leased[K, V]) []byte {
		if !l.flight.there {
			return nil
		}
		return c.encoded(ctx, l.flight.value)
	})
	return nil
}

// keep loads keys whose values never change and puts them into Redis: whoever else
// does the same at this moment puts the same.
func (c *Cache[K, V]) keep(ctx context.Context, keys []K, found map[K]V) error {
	loaded := make(map[K]V, len(keys))
	if err := c.load(ctx, keys, loaded, miss); err != nil {
		return err
	}
	maps.Copy(found, loaded)
	commands := make(rueidis.Commands, 0, len(loaded))
	for k, v := range loaded {
		if raw := c.encoded(ctx, v); raw != nil {
			commands = append(commands, pinned(c.redis.B().Set().Key(c.key(k)).Value(rueidis.BinaryString(raw)).Px(c.life()).Build()))
		}
	}
	if len(commands) == 0 {
		return nil
	}
	keeping, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	for _, r := range c.redis.DoMulti(keeping, commands...) {
		if err := r.Error(); err != nil {
			c.rest(ctx, err)
		}
	}
	return nil
}

// take asks for a lease of each key. others have one of somebody else by now, or
// it is not known whether they have ours: such a lease may come into effect after
// the load has begun, and proves nothing.
func (c *Cache[K, V]) take(ctx context.Context, keys []K) (mine []leased[K, V], others []K) {
	wanted := make([]leased[K, V], len(keys))
	commands := make(rueidis.Commands, len(keys))
	c.mu.Lock()
	for i, k := range keys {
		l := leased[K, V]{key: k, lease: c.newLease(), flight: &flight[V]{done: make(chan struct{})}}
		wanted[i] = l
		// Known before Redis shows it to anybody.
		c.flights[l.lease] = l.flight
		commands[i] = pinned(c.redis.B().Set().Key(c.key(k)).Value(l.lease).Nx().Px(leaseLife).Build())
	}
	c.mu.Unlock()
	asking, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	for i, r := range c.redis.DoMulti(asking, commands...) {
		err := r.Error()
		if err == nil {
			mine = append(mine, wanted[i])
			continue
		}
		others = append(others, keys[i])
		l := wanted[i]
		c.land([]leased[K, V]{l})
		l.flight.err = errNoLease
		close(l.flight.done)
		if !rueidis.IsRedisNil(err) {
			c.rest(ctx, err)
		}
	}
	return mine, others
}

// errNoLease tells those who saw a lease before its taker had heard of it.
var errNoLease = errors.New("the lease is not certain")

// put hands values to fillScript; without one the lease is given back. What fails
// is not in Redis, and the lease runs out by itself.
func (c *Cache[K, V]) put(ctx context.Context, mine []leased[K, V], value func(leased[K, V]) []byte) {
	if len(mine) == 0 {
		return
	}
	// The caller may have gone; others wait for the lease.
	ctx = context.WithoutCancel(ctx)
	filling, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	commands := make(rueidis.Commands, 0, len(mine))
	for _, l := range mine {
		raw := value(l)
		commands = append(commands, pinned(c.redis.B().Eval().Script(fillScript).Numkeys(1).Key(c.key(l.key)).
			Arg(l.lease, rueidis.BinaryString(raw), strconv.FormatInt(c.life().Milliseconds(), 10)).Build()))
	}
	for _, r := range c.redis.DoMulti(filling, commands...) {
		if err := r.Error(); err != nil {
			c.rest(ctx, err)
		}
	}
}

// encoded is a value as Redis keeps it, nil for one that is not worth it.
func (c *Cache[K, V]) encoded(ctx context.Context, v V) []byte {
	raw, err := c.opts.Encode(v)
	if err != nil {
		c.log.ErrorContext(ctx, "a value cannot be cached", "error", err)
		return nil
	}
	if len(raw) > mostBytes {
		return nil
	}
	return append([]byte{markValue}, raw...)
}

// life is how long one value is kept.
func (c *Cache[K, V]) life() time.Duration {
	return c.opts.TTL - time.Duration(rand.Int64N(int64(c.opts.TTL/10)+1))
}

// flight returns what is loaded under a lease of this process.
func (c *Cache[K, V]) flight(lease string) *flight[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights[lease]
}

// land forgets flights. Not before their values are in Redis: whoever sees a lease
// until then takes the value from the flight.
func (c *Cache[K, V]) land(done []leased[K, V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range done {
		delete(c.flights, l.lease)
	}
}

// join waits for loads of other calls, and loads by itself what they could not.
func (c *Cache[K, V]) join(ctx context.Context, shares []waiting[K, V], found map[K]V) error {
	var again []K
	joined := 0
	for _, w := range shares {
		select {
		case <-w.flight.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for a load: %w", ctx.Err())
		}
		switch {
		case w.flight.err != nil: // theirs: their deadline, perhaps
			again = append(again, w.key)
			continue
		case w.flight.there:
			found[w.key] = w.flight.value
		}
		joined++
	}
	c.metrics.count(ctx, shared, joined)
	if len(again) == 0 {
		return nil
	}
	return c.load(ctx, again, found, miss)
}
