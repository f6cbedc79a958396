package messaging

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// working runs a gatherer whose batches wait for the test.
type working struct {
	*gatherer[int]
	batches chan []int
	next    chan struct{}
	stop    func()
}

func newWorking(t *testing.T, g *gatherer[int]) *working {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &working{gatherer: g, batches: make(chan []int), next: make(chan struct{})}
	var done sync.WaitGroup
	done.Go(func() {
		defer close(w.batches)
		g.work(ctx, func(ctx context.Context, batch []int) {
			w.batches <- batch
			<-w.next
		})
	})
	w.stop = cancel
	t.Cleanup(func() { cancel(); done.Wait() })
	return w
}

func (w *working) finish() { w.next <- struct{}{} }

func TestGatherer(t *testing.T) {
	t.Parallel()

	t.Run("GathersWhileABatchIsInFlight", func(t *testing.T) {
		t.Parallel()
		w := newWorking(t, newGatherer[int](3, 100, 10, nil))
		require.NoError(t, w.add(1))
		require.Equal(t, []int{1}, <-w.batches)
		for i := 2; i <= 6; i++ {
			require.NoError(t, w.add(i))
		}
		w.finish()
		require.Equal(t, []int{2, 3, 4}, <-w.batches)
		w.finish()
		require.Equal(t, []int{5, 6}, <-w.batches)
		w.finish()
	})
	t.Run("IsBoundedInItemsAndBytes", func(t *testing.T) {
		t.Parallel()
		g := newGatherer(10, 10, 4, func(i int) int { return i })
		for _, i := range []int{50, 6, 4, 1} {
			require.NoError(t, g.add(i))
		}
		require.ErrorIs(t, g.add(1), errGathererFull)
		for _, want := range [][]int{{50}, {6, 4}, {1}} { // the large one alone
			batch, _ := g.take(t.Context())
			require.Equal(t, want, batch)
		}
	})
	t.Run("FinishesWhatItHasThenRefuses", func(t *testing.T) {
		t.Parallel()
		w := newWorking(t, newGatherer[int](1, 100, 10, nil))
		require.NoError(t, w.add(1))
		<-w.batches
		require.NoError(t, w.add(2))
		w.stop()
		require.NoError(t, w.add(3)) // still at work
		w.finish()
		require.Equal(t, []int{2}, <-w.batches)
		w.finish()
		require.Equal(t, []int{3}, <-w.batches)
		w.finish()
		_, open := <-w.batches
		require.False(t, open)
		require.ErrorIs(t, w.add(4), errGathererClosed)
	})
	t.Run("WhatIsSetAsideComesFirstAndIsWaitedFor", func(t *testing.T) {
		t.Parallel()
		g := newGatherer[int](10, 100, 10, nil)
		var aside []int
		parked := true
		g.aside = func(i int) bool {
			if parked && i%2 == 1 {
				aside = append(aside, i)
				return true
			}
			return false
		}
		w := newWorking(t, g)
		for i := 1; i <= 4; i++ {
			require.NoError(t, w.add(i))
			if i%2 == 0 {
				require.Equal(t, []int{i}, <-w.batches)
				w.finish()
			}
		}
		w.stop() // 1 and 3 are aside
		require.NoError(t, w.add(5))
		require.Eventually(t, func() bool { return g.length() == 3 }, waitFor, tick)
		g.mu.Lock()
		parked = false
		g.giveBackLocked(aside, len(aside))
		g.mu.Unlock()
		batch := <-w.batches
		require.Subset(t, []int{1, 3, 5}, batch)
		require.Equal(t, 1, batch[0])
		w.finish()
	})
}
