package event_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
	barrierv1 "github.com/parleychat/parley/proto/gen/parley/barrier/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

func TestBarrier(t *testing.T) {
	t.Parallel()
	t.Run("CompleteWhenTheEffectIsCommitted", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.listen([]event.Listener{
			event.On("zoo", "animal.fed", event.Once, count),
			event.On("zoo", "animal.fed", event.ByVersion, func(context.Context, pgx.Tx, *eventv1.Event, *wrapperspb.StringValue) error { return nil }).Named("second"),
		})
		barrier := w.bus.NewBarrier("alpha/animal.fed", "alpha/second")
		ev := barrier.On(fed("lion", 1, "full"))
		w.publish(ev)
		require.Equal(t, barrierv1.Propagation_PROPAGATION_COMPLETE, barrier.Wait(t.Context(), patience))
		n, _, _ := w.effect("lion")
		require.Equal(t, 1, n, "committed before the answer")

		// Delivered again, for another waiter: done is done.
		barrier = w.bus.NewBarrier("alpha")
		w.again(barrier.On(ev))
		require.Equal(t, barrierv1.Propagation_PROPAGATION_COMPLETE, barrier.Wait(t.Context(), patience))
	})
	t.Run("PendingWhenOneIsMissing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count)})
		barrier := w.bus.NewBarrier("alpha", "absent")
		w.publish(barrier.On(fed("lion", 1, "full")))
		w.settled(zooFed)
		require.Equal(t, barrierv1.Propagation_PROPAGATION_PENDING, barrier.Wait(t.Context(), 100*time.Millisecond))
	})
	t.Run("CompleteForNobody", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		require.Equal(t, barrierv1.Propagation_PROPAGATION_COMPLETE, w.bus.NewBarrier().Wait(t.Context(), time.Nanosecond))
	})
}

// seen is a follower's set.
type seen struct {
	mu   sync.Mutex
	keys []string
}

func (s *seen) add(ev *eventv1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, ev.GetKey())
}

func (s *seen) has(keys ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		if !slices.Contains(s.keys, k) {
			return false
		}
	}
	return true
}

func (w *world) follow(s *seen) (ready chan struct{}) {
	ready = make(chan struct{})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.bus.Follow(ctx, "zoo", "animal.fed", time.Hour, s.add, func() { close(ready) }) }()
	w.t.Cleanup(func() { cancel(); require.NoError(w.t, <-done) })
	return ready
}

func TestFollow(t *testing.T) {
	t.Parallel()
	t.Run("GivesThePastThenTellsThenThePresent", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.publish(fed("a", 1, ""), event.New("animal.born", "other", 1, nil), fed("b", 1, ""))
		one, two := &seen{}, &seen{}
		for _, s := range []*seen{one, two} {
			<-w.follow(s)
			require.True(t, s.has("a", "b"))
			require.False(t, s.has("other"))
		}
		w.publish(fed("c", 1, ""))
		require.Eventually(t, func() bool { return one.has("c") && two.has("c") }, patience, often, "every follower gets it")
	})
	t.Run("IsCaughtUpWhereNothingEverHappened", func(t *testing.T) {
		t.Parallel()
		<-newWorld(t).follow(&seen{})
	})
	t.Run("OutlivesAWipedServer", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateNATS(t)
		w := newWorldAt(t, server.URL)
		s := &seen{}
		w.publish(fed("before", 1, ""))
		<-w.follow(s)
		server.Kill9()
		server.Wipe()
		server.Restart()
		w.publishSoon(fed("after", 1, ""))
		require.Eventually(t, func() bool { return s.has("before", "after") }, patience, often, "the follower starts over")
	})
}

// publishSoon publishes as soon as the server is back.
func (w *world) publishSoon(ev *eventv1.Event) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		return w.tryPublish(ev) == nil
	}, patience, 100*time.Millisecond, "the server is back")
}

func TestStreamWipedAtRunTime(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	w := newWorldAt(t, server.URL)
	w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count)})
	w.publish(fed("before", 1, ""))
	w.settled(zooFed)

	t.Log("the store is lost with the server")
	server.Kill9()
	require.Error(t, w.bus.Ready(t.Context()))
	server.Wipe()
	server.Restart()
	w.publishSoon(fed("after", 1, ""))
	require.Eventually(t, func() bool { n, _, _ := w.effect("after"); return n == 1 }, patience, often, "the listener goes on")
	require.NoError(t, w.bus.Ready(t.Context()))

	t.Log("only the stream is deleted")
	require.NoError(t, w.bus.JetStream().DeleteStream(t.Context(), event.StreamName("zoo")))
	w.publishSoon(fed("later", 1, ""))
	require.Eventually(t, func() bool { n, _, _ := w.effect("later"); return n == 1 }, patience, often, "the listener goes on")
}

func TestConnectWithoutServer(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	server.Stop()
	w := newWorldAt(t, server.URL) // a service may start first
	require.Error(t, w.bus.Ready(t.Context()))
	w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count)})
	server.Restart()
	w.publishSoon(fed("lion", 1, ""))
	require.Eventually(t, func() bool { n, _, _ := w.effect("lion"); return n == 1 }, patience, often, "the listener comes up by itself")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	require.NoError(t, event.Check(fed("lion", 1, "full")))
	require.NoError(t, event.Check(event.New("animal.born", "lion", 1, nil)))
	require.NoError(t, event.Check(event.New("animal2.born_at.x", "lion", 1, nil)))
	for name, ev := range map[string]*eventv1.Event{
		"nil":          nil,
		"no key":       event.New("animal.fed", "", 1, nil),
		"odd type":     event.New("Animal Fed", "lion", 1, nil),
		"one word":     event.New("animal", "lion", 1, nil),
		"no word":      event.New("", "lion", 1, nil),
		"empty word":   event.New("animal..fed", "lion", 1, nil),
		"empty end":    event.New("animal.", "lion", 1, nil),
		"digit first":  event.New("animal.2fed", "lion", 1, nil),
		"line":         event.New("_animal.fed", "lion", 1, nil),
		"not ASCII":    event.New("animal.fütter", "lion", 1, nil),
		"wildcard":     event.New("animal.>", "lion", 1, nil),
		"too large":    fed("lion", 1, string(make([]byte, event.MaxBytes))),
		"not packable": fed("lion", 1, "\xff"),
	} {
		require.Error(t, event.Check(ev), name)
	}
}
