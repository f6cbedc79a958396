package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/cache"
)

// The promise: a read that begins after Invalidate has returned gives no older value
// than the source had when Invalidate was called.
//
// Several processes read and change a few keys, with loads that dawdle between
// reading and returning, connections that are cut and a server that forgets
// everything now and then. Each call notes when it began and ended by one counter
// that all share; afterwards the whole history is judged.

// act is one call in the history.
type act struct {
	key        string
	began, end int64
	version    int
	read       bool // else an invalidation that succeeded, of that version
}

// world is what happened.
type world struct {
	tick     atomic.Int64
	versions map[string]*atomic.Int64

	mu   sync.Mutex
	acts []act
}

func newWorld(keys []string) *world {
	w := &world{versions: map[string]*atomic.Int64{}}
	for _, k := range keys {
		w.versions[k] = &atomic.Int64{}
	}
	return w
}

func (w *world) note(a act) {
	a.end = w.tick.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acts = append(w.acts, a)
}

// load reads the source and dawdles: what it returns may be old by then.
func (w *world) load(ctx context.Context, keys []string) (map[string]int, error) {
	out := map[string]int{}
	for _, k := range keys {
		out[k] = int(w.versions[k].Load())
	}
	return out, dawdle(ctx, 3*time.Millisecond)
}

func dawdle(ctx context.Context, most time.Duration) error {
	timer := time.NewTimer(rand.N(most))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// judge returns every broken promise.
func judge(acts []act) []error {
	var broken []error
	newest := map[string][]act{} // invalidations by key
	for _, a := range acts {
		if !a.read {
			newest[a.key] = append(newest[a.key], a)
		}
	}
	for _, r := range acts {
		if !r.read {
			continue
		}
		for _, i := range newest[r.key] {
			if i.end < r.began && i.version > r.version {
				broken = append(broken, fmt.Errorf("%s: version %d, read from %d to %d, but version %d was invalidated at %d",
					r.key, r.version, r.began, r.end, i.version, i.end))
				break
			}
		}
	}
	return broken
}

// reader is what is tested: the cache, or one that cannot keep the promise.
type reader interface {
	Get(ctx context.Context, key string) (int, bool, error)
	Invalidate(ctx context.Context, keys ...string) error
}

// play lets each reader be used by several callers for a while, and disturbs.
func play(t *testing.T, w *world, keys []string, readers []reader, disturb func(n int)) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	for _, r := range readers {
		for range 4 {
			group.Go(func() {
				for ctx.Err() == nil {
					key := keys[rand.IntN(len(keys))]
					began := w.tick.Add(1)
					if v, _, err := r.Get(ctx, key); err == nil {
						w.note(act{key: key, began: began, version: v, read: true})
					}
				}
			})
		}
		group.Go(func() {
			for ctx.Err() == nil {
				key := keys[rand.IntN(len(keys))]
				change(ctx, w, r, key)
				_ = dawdle(ctx, 5*time.Millisecond)
			}
		})
	}
	group.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			_ = dawdle(ctx, 60*time.Millisecond)
			disturb(n)
		}
	})
	const enough = 20_000
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.acts) >= enough
	}, 2*time.Minute, often, "the history grows")
	stop()
	group.Wait()
}

// change writes the next version, and invalidates until that has succeeded.
func change(ctx context.Context, w *world, r reader, key string) {
	version := int(w.versions[key].Add(1))
	for ctx.Err() == nil {
		began := w.tick.Add(1)
		if r.Invalidate(ctx, key) == nil {
			w.note(act{key: key, began: began, version: version})
			return
		}
		_ = dawdle(ctx, time.Millisecond)
	}
}

// hardships are what can happen to a Redis that keeps its word.
func hardships(t *testing.T, client rueidis.Client) func(n int) {
	return func(n int) {
		for _, node := range client.Nodes() {
			switch n % 3 {
			case 0: // connections break, also with commands on the way
				_ = node.Do(t.Context(), node.B().ClientKill().TypeNormal().Build()).Error()
			case 1:
				_ = node.Do(t.Context(), node.B().Flushall().Build()).Error()
			case 2:
				_ = node.Do(t.Context(), node.B().ScriptFlush().Build()).Error()
			}
		}
	}
}

func TestNothingStaleAfterInvalidate(t *testing.T) {
	t.Parallel()
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := start(t)
			keys := []string{"a", "b", "c", "d", "e"}
			w := newWorld(keys)
			opts := numbers(newSource(nil))
			opts.Load = w.load
			var readers []reader
			for range 4 { // processes, each with connections of its own
				readers = append(readers, newCache(t, open(t, url), opts))
			}
			disturb := func(int) {}
			if name != "Embedded" { // whose server knows no connections to kill, and is shared
				disturb = hardships(t, open(t, url))
			}
			play(t, w, keys, readers, disturb)
			require.Empty(t, judge(w.acts))
			t.Logf("%d acts", len(w.acts))
		})
	}
}

// naive is a cache as it is written at first: look, load, put.
type naive struct {
	client rueidis.Client
	load   func(ctx context.Context, keys []string) (map[string]int, error)
}

func (n naive) Get(ctx context.Context, key string) (int, bool, error) {
	name := "naive:" + key
	if v, err := n.client.Do(ctx, n.client.B().Get().Key(name).Build()).AsInt64(); err == nil {
		return int(v), true, nil
	}
	loaded, err := n.load(ctx, []string{key})
	if err != nil {
		return 0, false, err
	}
	err = n.client.Do(ctx, n.client.B().Set().Key(name).Value(fmt.Sprint(loaded[key])).Ex(time.Minute).Build()).Error()
	return loaded[key], true, err
}

func (n naive) Invalidate(ctx context.Context, keys ...string) error {
	var errs []error
	for _, k := range keys {
		errs = append(errs, n.client.Do(ctx, n.client.B().Del().Key("naive:"+k).Build()).Error())
	}
	return errors.Join(errs...)
}

// The test above can see what it looks for.
func TestTheJudgeConvictsANaiveCache(t *testing.T) {
	t.Parallel()
	url := embedded(t)
	keys := []string{"a", "b"}
	w := newWorld(keys)
	var readers []reader
	for range 4 {
		readers = append(readers, naive{open(t, url), w.load})
	}
	play(t, w, keys, readers, func(int) {})
	require.NotEmpty(t, judge(w.acts))
}

func TestJudge(t *testing.T) {
	t.Parallel()
	invalidated := act{key: "a", began: 1, end: 2, version: 5}
	require.Empty(t, judge([]act{invalidated, {key: "a", began: 3, end: 4, version: 5, read: true}}))
	require.Empty(t, judge([]act{invalidated, {key: "a", began: 2, end: 4, version: 4, read: true}}), "it began before the end")
	require.Empty(t, judge([]act{invalidated, {key: "b", began: 3, end: 4, version: 4, read: true}}))
	require.Len(t, judge([]act{invalidated, {key: "a", began: 3, end: 4, version: 4, read: true}}), 1)
}

var _ reader = (*cache.Cache[string, int])(nil)
