package cache_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/testkit"
)

const (
	patience = 30 * time.Second
	often    = 5 * time.Millisecond
)

// embedded is the URL of the server that development and most tests use.
func embedded(t *testing.T) string { return testkit.Redis(t) + "?protocol=2&client_cache=0" }

// servers are all that the cache has to work with.
var servers = map[string]func(t *testing.T) string{
	"Embedded": embedded,
	"Redis":    func(t *testing.T) string { return testkit.PrivateRedis(t).URL },
	"Cluster":  func(t *testing.T) string { return testkit.RedisCluster(t) },
}

func open(t *testing.T, url string) rueidis.Client {
	t.Helper()
	c, err := cache.Open(url, "test")
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// source is what stands behind a cache: numbers by name.
type source struct {
	mu     sync.Mutex
	values map[string]int
	err    error
	loads  atomic.Int32
	keys   atomic.Int32
	// hold, when set, is received from by each load after it has read.
	hold chan struct{}
}

func newSource(values map[string]int) *source { return &source{values: values} }

func (s *source) load(ctx context.Context, keys []string) (map[string]int, error) {
	s.loads.Add(1)
	s.keys.Add(int32(len(keys)))
	s.mu.Lock()
	out := map[string]int{}
	for _, k := range keys {
		if v, ok := s.values[k]; ok {
			out[k] = v
		}
	}
	hold, err := s.hold, s.err
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return out, err
}

func (s *source) set(key string, value int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = value
}

func (s *source) fails(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// holds makes loads wait, and returns what lets them all go on.
func (s *source) holds() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hold := make(chan struct{})
	s.hold = hold
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.hold = nil
		s.mu.Unlock()
		close(hold)
	})
}

func numbers(s *source) cache.Options[string, int] {
	return cache.Options[string, int]{
		Name: "test.numbers", TTL: time.Minute, Key: func(k string) string { return k },
		Encode: func(v int) ([]byte, error) { return strconv.AppendInt(nil, int64(v), 10), nil },
		Decode: func(raw []byte) (int, error) { return strconv.Atoi(string(raw)) },
		Load:   s.load,
		// A machine that is busy with other tests is no Redis that hangs.
		Patience: patience,
	}
}

func newCache(t *testing.T, c rueidis.Client, opts cache.Options[string, int]) *cache.Cache[string, int] {
	t.Helper()
	out, err := cache.New(c, testkit.Logger(t), opts)
	require.NoError(t, err)
	return out
}

// stop pauses a server and returns when it has stopped, which the signal alone does
// not say.
func stop(t *testing.T, server *testkit.RedisServer) {
	t.Helper()
	client := open(t, server.URL+"?client_cache=0")
	server.Pause()
	require.Eventually(t, func() bool {
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		return client.Do(short, client.B().Ping().Build()).Error() != nil
	}, patience, often, "it answers no more")
}

func requireValue(t *testing.T, c *cache.Cache[string, int], key string, want int) {
	t.Helper()
	got, ok, err := c.Get(t.Context(), key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, want, got)
}

func TestCache(t *testing.T) {
	t.Parallel()
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := open(t, start(t))

			t.Run("LoadsOnceAndKeeps", func(t *testing.T) {
				s := newSource(map[string]int{"a": 1, "b": 2, "c": 3})
				opts := numbers(s)
				opts.Name = "test.keeps"
				c, other := newCache(t, client, opts), newCache(t, client, opts)
				got, err := c.GetMany(t.Context(), []string{"a", "b", "a", "nobody"})
				require.NoError(t, err)
				require.Equal(t, map[string]int{"a": 1, "b": 2}, got)
				require.EqualValues(t, 3, s.keys.Load(), "what is asked twice is loaded once")
				got, err = other.GetMany(t.Context(), []string{"b", "c", "a"})
				require.NoError(t, err)
				require.Equal(t, map[string]int{"a": 1, "b": 2, "c": 3}, got)
				require.EqualValues(t, 4, s.keys.Load(), "another process finds them in Redis")
				ttl, err := client.Do(t.Context(), client.B().Pttl().Key("cache:test.keeps:a").Build()).AsInt64()
				require.NoError(t, err)
				require.Positive(t, ttl)
				require.LessOrEqual(t, ttl, time.Minute.Milliseconds())
			})
			t.Run("InvalidateMakesTheNextReadNew", func(t *testing.T) {
				s := newSource(map[string]int{"a": 1})
				opts := numbers(s)
				opts.Name = "test.invalidate"
				c, other := newCache(t, client, opts), newCache(t, client, opts)
				requireValue(t, c, "a", 1)
				s.set("a", 2)
				requireValue(t, other, "a", 1)
				require.NoError(t, c.Invalidate(t.Context(), "a", "b"))
				requireValue(t, other, "a", 2)
			})
			t.Run("WhatWasLoadedBeforeAnInvalidationIsNotKept", func(t *testing.T) {
				s := newSource(map[string]int{"a": 1})
				opts := numbers(s)
				opts.Name = "test.late"
				c := newCache(t, client, opts)
				release := s.holds()
				late := make(chan int, 1)
				go func() {
					v, _, _ := c.Get(t.Context(), "a")
					late <- v
				}()
				require.Eventually(t, func() bool { return s.loads.Load() == 1 }, patience, often, "the load has read the old value")
				s.set("a", 2)
				require.NoError(t, c.Invalidate(t.Context(), "a"))
				// One that begins now may not share that load, nor may what it leaves be kept.
				early := make(chan int, 1)
				go func() {
					v, _, _ := c.Get(t.Context(), "a")
					early <- v
				}()
				require.Eventually(t, func() bool { return s.loads.Load() == 2 }, patience, often, "the second one loads by itself")
				release()
				require.Equal(t, 1, <-late, "who began before may have the old value")
				require.Equal(t, 2, <-early)
				requireValue(t, c, "a", 2)
			})
			t.Run("ManyShareOneLoad", func(t *testing.T) {
				s := newSource(map[string]int{"a": 1})
				opts := numbers(s)
				opts.Name = "test.share"
				c := newCache(t, client, opts)
				release := s.holds()
				var group sync.WaitGroup
				got := make([]int, 20)
				read := func(i int) { got[i], _, _ = c.Get(t.Context(), "a") }
				group.Go(func() { read(0) })
				require.Eventually(t, func() bool { return s.loads.Load() == 1 }, patience, often, "the first loads")
				for i := range got[1:] {
					group.Go(func() { read(i + 1) })
				}
				require.Never(t, func() bool { return s.loads.Load() > 1 }, 200*time.Millisecond, often, "the others wait for it")
				release()
				group.Wait()
				for _, v := range got {
					require.Equal(t, 1, v)
				}
				require.EqualValues(t, 1, s.loads.Load())
			})
			t.Run("ErrorsAreNotKept", func(t *testing.T) {
				s := newSource(map[string]int{"a": 1})
				opts := numbers(s)
				opts.Name = "test.errors"
				c := newCache(t, client, opts)
				bad := errors.New("no")
				s.fails(bad)
				_, _, err := c.Get(t.Context(), "a")
				require.ErrorIs(t, err, bad)
				s.fails(nil)
				requireValue(t, c, "a", 1)
				require.EqualValues(t, 2, s.loads.Load())
				requireValue(t, c, "a", 1)
				require.EqualValues(t, 2, s.loads.Load(), "the failed load has given its lease back")
			})
			t.Run("AnUnreadableValueIsReplaced", func(t *testing.T) {
				s := newSource(map[string]int{"a": 1})
				opts := numbers(s)
				opts.Name = "test.unreadable"
				c := newCache(t, client, opts)
				require.NoError(t, client.Do(t.Context(), client.B().Set().Key("cache:test.unreadable:a").Value("vnonsense").Build()).Error())
				requireValue(t, c, "a", 1)
				requireValue(t, c, "a", 1)
				requireValue(t, c, "a", 1)
				require.EqualValues(t, 2, s.loads.Load(), "forgotten at first, filled by the next")
			})
		})
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := numbers(newSource(nil))
	for name, change := range map[string]func(*cache.Options[string, int]){
		"NoName": func(o *cache.Options[string, int]) { o.Name = "" },
		"NoTTL":  func(o *cache.Options[string, int]) { o.TTL = 0 },
		"NoLoad": func(o *cache.Options[string, int]) { o.Load = nil },
	} {
		opts := good
		change(&opts)
		_, err := cache.New[string, int](nil, testkit.Logger(t), opts)
		require.Error(t, err, name)
	}
}

func TestWithoutRedis(t *testing.T) {
	t.Parallel()
	t.Run("NoneConfigured", func(t *testing.T) {
		t.Parallel()
		s := newSource(map[string]int{"a": 1})
		c := newCache(t, nil, numbers(s))
		requireValue(t, c, "a", 1)
		s.set("a", 2)
		require.NoError(t, c.Invalidate(t.Context(), "a"))
		requireValue(t, c, "a", 2)
	})
	t.Run("AwayAndBack", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateRedis(t)
		s := newSource(map[string]int{"a": 1})
		c := newCache(t, open(t, server.URL+"?client_cache=0"), numbers(s))
		requireValue(t, c, "a", 1)
		server.Stop()
		s.set("a", 2)
		requireValue(t, c, "a", 2)
		require.ErrorIs(t, c.Invalidate(t.Context(), "a"), cache.ErrAway)
		server.Restart()
		require.Eventually(t, func() bool { return c.Invalidate(t.Context(), "a") == nil }, patience, often, "it connects again")
		require.Eventually(t, func() bool {
			before := s.loads.Load()
			requireValue(t, c, "a", 2)
			return s.loads.Load() == before
		}, patience, often, "and is used again")
	})
	t.Run("AHangingServerHoldsUpOneReadAndThenNobody", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateRedis(t)
		s := newSource(map[string]int{"a": 1})
		opts := numbers(s)
		opts.Patience = 0 // as it is by default
		c := newCache(t, open(t, server.URL+"?client_cache=0"), opts)
		requireValue(t, c, "a", 1)
		server.Pause()
		defer server.Resume()
		began := time.Now()
		for range 50 {
			requireValue(t, c, "a", 1)
		}
		require.Less(t, time.Since(began), 10*time.Second, "fifty waits would take 25 s")
	})
	t.Run("AHangingServerHoldsUpOneWriteAndThenNobody", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateRedis(t)
		opts := numbers(newSource(map[string]int{"a": 1}))
		opts.Patience = 0 // as it is by default
		c := newCache(t, open(t, server.URL+"?client_cache=0"), opts)
		require.NoError(t, c.Invalidate(t.Context(), "a"))
		stop(t, server)
		defer server.Resume()
		began := time.Now()
		for range 20 {
			require.ErrorIs(t, c.Invalidate(t.Context(), "a"), cache.ErrAway)
		}
		require.Less(t, time.Since(began), 5*time.Second, "twenty waits would take 10 s")
		server.Resume()
		require.Eventually(t, func() bool { return c.Invalidate(t.Context(), "a") == nil }, patience, often, "it is asked again")
	})
	t.Run("AServerThatHangsDuringALoadIsLeftAlone", func(t *testing.T) {
		t.Parallel()
		for name, constant := range map[string]bool{"put": false, "keep": true} {
			server := testkit.PrivateRedis(t)
			s := newSource(map[string]int{"a": 1, "b": 2})
			opts := numbers(s)
			opts.Patience, opts.Constant = 2*time.Second, constant
			load := opts.Load
			var once sync.Once
			opts.Load = func(ctx context.Context, keys []string) (map[string]int, error) {
				once.Do(func() { stop(t, server) })
				return load(ctx, keys)
			}
			c := newCache(t, open(t, server.URL+"?client_cache=0"), opts)
			requireValue(t, c, "a", 1)
			began := time.Now()
			requireValue(t, c, "b", 2)
			require.Less(t, time.Since(began), opts.Patience/2, "%s has told the next one", name)
			server.Resume()
		}
	})
	t.Run("LoadsAreBounded", func(t *testing.T) {
		t.Parallel()
		s := newSource(map[string]int{"a": 1})
		release := s.holds()
		opts := numbers(s)
		opts.Loads = 3
		c := newCache(t, nil, opts)
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() { _, _, _ = c.Get(t.Context(), "a") })
		}
		require.Eventually(t, func() bool { return s.loads.Load() == 3 }, patience, often, "three load")
		require.Never(t, func() bool { return s.loads.Load() > 3 }, 100*time.Millisecond, often, "the others wait")
		ctx, cancel := context.WithTimeout(t.Context(), often)
		defer cancel()
		_, _, err := c.Get(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded, "as long as they may")
		release()
		group.Wait()
	})
}
