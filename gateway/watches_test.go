package gateway

import (
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// TestWatchesAgreeWithAMap plays many random steps against the plain version of the
// same thing.
func TestWatchesAgreeWithAMap(t *testing.T) {
	t.Parallel()
	const sockets, people, steps = 20, 300, 60_000
	w := newWatches()
	random := rand.New(rand.NewPCG(1, 2))
	keys := make([]uuid.UUID, people)
	for i := range keys {
		keys[i] = uuid.New()
	}
	type watcher struct {
		c       *connection
		list    *watchList
		watched map[uuid.UUID]bool // granted
	}
	join := func() *watcher {
		c := &connection{}
		return &watcher{c: c, list: w.join(c), watched: map[uuid.UUID]bool{}}
	}
	watchers := make([]*watcher, sockets)
	for i := range watchers {
		watchers[i] = join()
	}
	version := int64(0)
	for range steps {
		at, key := random.IntN(sockets), keys[random.IntN(people)]
		by := watchers[at]
		granted, watching := by.watched[key]
		switch random.IntN(10) {
		case 0, 1, 2, 3:
			require.Equal(t, !watching, w.add(by.list, key))
			by.watched[key] = granted
		case 4, 5:
			w.grant(by.list, key, 0)
			if watching {
				by.watched[key] = true
			}
		case 6, 7:
			w.remove(by.list, key)
			delete(by.watched, key)
		case 8:
			version++
			told := map[*connection]bool{}
			w.tell(key, version, func(c *connection) {
				require.False(t, told[c], "told twice")
				told[c] = true
			})
			for _, other := range watchers {
				require.Equal(t, other.watched[key], told[other.c])
			}
			w.tell(key, version, func(*connection) { require.Fail(t, "told before") })
		default:
			if random.IntN(50) == 0 {
				w.leave(by.list)
				require.False(t, w.add(by.list, key), "it has gone")
				w.leave(by.list)
				watchers[at] = join()
			}
			require.Len(t, w.keys(watchers[at].list), len(watchers[at].watched))
		}
	}
	for _, by := range watchers {
		for _, key := range w.keys(by.list) {
			_, watching := by.watched[key]
			require.True(t, watching)
		}
		w.leave(by.list)
	}
	links, watched := w.total()
	require.Zero(t, links)
	require.Zero(t, watched)
}

func TestGrantTellsWhatIsOutdated(t *testing.T) {
	t.Parallel()
	w := newWatches()
	l, key := w.join(&connection{}), uuid.New()
	require.True(t, w.add(l, key))
	w.tell(key, 5, func(*connection) { require.Fail(t, "not granted yet") })
	require.True(t, w.grant(l, key, 4))
	require.False(t, w.grant(l, key, 5))
	told := false
	w.tell(key, 6, func(*connection) { told = true })
	require.True(t, told)
}
