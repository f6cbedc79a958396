package event_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const zooFed = "alpha--animal-fed"

func TestListenerOnce(t *testing.T) {
	t.Parallel()
	t.Run("DeliveredTwiceHasOneEffect", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var calls atomic.Int32
		w.listen([]event.Listener{counting(&calls, event.On("zoo", "animal.fed", event.Once, count))})
		ev := fed("lion", 1, "full")
		w.publish(ev)
		for range 3 {
			w.again(ev)
		}
		require.Eventually(t, func() bool { n, _, _ := w.effect("lion"); return n == 1 }, patience, often, "it has happened")
		w.settled(zooFed)
		n, _, _ := w.effect("lion")
		require.Equal(t, 1, n)
		require.EqualValues(t, 1, calls.Load(), "the guard comes before the handler")
	})
	t.Run("AFailedEffectLeavesNoGuard", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var calls atomic.Int32
		l := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, p *wrapperspb.StringValue) error {
			if err := count(ctx, tx, ev, p); err != nil {
				return err
			}
			if calls.Load() < 3 {
				return errors.New("after the effect")
			}
			return nil
		})
		w.listen([]event.Listener{counting(&calls, l)})
		w.publish(fed("lion", 1, "full"))
		w.settled(zooFed)
		n, _, _ := w.effect("lion")
		require.Equal(t, 1, n)
		require.EqualValues(t, 3, calls.Load())
	})
	t.Run("OlderThanTheInboxIsRefusedLoudly", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count)}, event.MaxAttempts(1))
		ev := fed("lion", 1, "full")
		ev.Id = uuid.NewString()
		ev.Time = timestamppb.New(w.clock.Now().Add(-event.InboxKeep - time.Hour))
		w.publish(ev)
		letters := w.dead(1)
		require.Contains(t, letters[0].Letter.GetError(), "older than the inbox remembers")
		n, _, _ := w.effect("lion")
		require.Zero(t, n)
	})
}

func TestListenerByVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const last = 20
	for v := int64(last); v >= 1; v-- { // reversed, and each twice
		ev := fed("lion", v, "state of "+string(rune('a'+v)))
		w.publish(ev)
		w.again(ev)
	}
	w.listen([]event.Listener{event.On("zoo", "animal.fed", event.ByVersion, keepHighest)})
	w.settled(zooFed)
	_, version, state := w.effect("lion")
	require.EqualValues(t, last, version)
	require.Equal(t, "state of "+string(rune('a'+last)), state)
}

func TestListenerFails(t *testing.T) {
	t.Parallel()
	t.Run("RetriedWithBackoffParkedReplayed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var calls, waits atomic.Int32
		var healthy atomic.Bool
		l := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, p *wrapperspb.StringValue) error {
			if ev.GetKey() == "lion" && !healthy.Load() {
				return errors.New("no meat")
			}
			return count(ctx, tx, ev, p)
		})
		w.listen([]event.Listener{counting(&calls, l)}, event.MaxAttempts(4), event.Backoff(func(attempt int) time.Duration {
			waits.Store(max(waits.Load(), int32(attempt)))
			return time.Duration(attempt) * 10 * time.Millisecond
		}))
		w.publish(fed("lion", 1, "full"), fed("mouse", 1, "full"))

		letters := w.dead(1)
		require.Equal(t, "lion", letters[0].Letter.GetEvent().GetKey())
		require.EqualValues(t, 4, letters[0].Letter.GetAttempts())
		require.Contains(t, letters[0].Letter.GetError(), "no meat")
		require.EqualValues(t, 3, waits.Load(), "a wait after each failure but the last")
		w.settled(zooFed)
		n, _, _ := w.effect("mouse")
		require.Equal(t, 1, n, "the others go on")
		require.EqualValues(t, 5, calls.Load())

		healthy.Store(true)
		replayed, err := w.bus.Replay(t.Context(), event.DeadFilter{Service: "alpha", Listener: "animal.fed"})
		require.NoError(t, err)
		require.Equal(t, 1, replayed)
		require.Eventually(t, func() bool { n, _, _ := w.effect("lion"); return n == 1 }, patience, often, "the replay has its effect")
		w.dead(0)
	})
	t.Run("AnOutageParksNothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var calls atomic.Int32
		l := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, p *wrapperspb.StringValue) error {
			if calls.Load() < 3 {
				return event.Later(errors.New("callee is away"))
			}
			return count(ctx, tx, ev, p)
		})
		w.listen([]event.Listener{counting(&calls, l)}, event.MaxAttempts(1))
		w.publish(fed("lion", 1, "full"))
		require.Eventually(t, func() bool { n, _, _ := w.effect("lion"); return n == 1 }, patience, often, "it happens in the end")
		w.dead(0)
	})
	t.Run("ACallWithoutEndIsCutOffAndParked", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, _ pgx.Tx, _ *eventv1.Event, _ *wrapperspb.StringValue) error {
			<-ctx.Done()
			return ctx.Err()
		})
		w.listen([]event.Listener{l}, event.MaxAttempts(2), event.HandleTimeout(50*time.Millisecond))
		w.publish(fed("lion", 1, "full"))
		require.Contains(t, w.dead(1)[0].Letter.GetError(), "deadline")
	})
	t.Run("APanicIsAnErrorLikeAnyOther", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := event.On("zoo", "animal.fed", event.Once, func(context.Context, pgx.Tx, *eventv1.Event, *wrapperspb.StringValue) error {
			return brokenHandler(nil)
		})
		w.listen([]event.Listener{l}, event.MaxAttempts(2))
		w.publish(fed("lion", 1, "full"))
		require.Contains(t, w.dead(1)[0].Letter.GetError(), "panic")
	})
}

func TestListenerUnknownPayloadIsLeftForANewerReplica(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var old atomic.Int32
	stop := w.listen([]event.Listener{counting(&old, event.On("zoo", "animal.fed", event.Once, count))},
		event.UnknownWait(30*time.Millisecond), event.MaxAttempts(2))
	w.publish(event.New("animal.fed", "lion", 1, durationpb.New(time.Hour)))
	require.Eventually(t, func() bool { return old.Load() > 3 }, patience, often, "offered more often than it may fail")
	w.dead(0)
	stop()

	newer := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, _ *durationpb.Duration) error {
		return count(ctx, tx, ev, nil)
	})
	w.listen([]event.Listener{newer})
	require.Eventually(t, func() bool { n, _, _ := w.effect("lion"); return n == 1 }, patience, often, "the newer replica takes it")
}

func TestDatabaseAwayParksNothing(t *testing.T) {
	t.Parallel()
	server := testkit.PrivatePostgres(t)
	w := newWorldOn(t, testkit.NATS(t).URL, server.NewDatabase(t, testkit.Schema{Service: "alpha"}))
	var calls atomic.Int32
	w.listen([]event.Listener{counting(&calls, event.On("zoo", "animal.fed", event.Once, count))}, event.MaxAttempts(1))
	w.publish(fed("before", 1, ""))
	require.Eventually(t, func() bool { n, _, _ := w.effect("before"); return n == 1 }, patience, often, "it has happened")

	server.Kill9()
	for range 20 {
		w.publish(fed("during", 1, ""))
	}
	server.Restart()
	require.Eventually(t, func() bool {
		var n int
		err := w.pool.QueryRow(t.Context(), `SELECT n FROM effect WHERE key = 'during'`).Scan(&n)
		return err == nil && n == 20
	}, patience, often, "all of them happen, once")
	w.dead(0)
}

func TestListenersAddRefuses(t *testing.T) {
	t.Parallel()
	ls := event.NewListeners("alpha", nil, nil, nil, nil)
	good := event.On("zoo", "animal.fed", event.Once, count)
	require.NoError(t, ls.Add(good, good.Named("second")))
	require.Error(t, ls.Add(good), "there twice")
	require.Error(t, ls.Add(event.On("zoo", "animal.born", event.Mode(0), count)), "no mode")
	require.Error(t, ls.Add(event.Listener{Source: "zoo", Type: "animal.born", Mode: event.Once}), "no handler")
	require.Error(t, ls.Add(event.On("", "animal.born", event.Once, count)), "no source")
}

// brokenHandler panics on an empty list.
func brokenHandler(list []error) error { return list[0] }

// dead waits for exactly so many dead letters.
func (w *world) dead(want int) []event.Dead {
	w.t.Helper()
	var letters []event.Dead
	require.Eventually(w.t, func() bool {
		var err error
		letters, err = w.bus.ListDead(w.t.Context(), event.DeadFilter{})
		return err == nil && len(letters) == want
	}, patience, often, "%d dead letters", want)
	return letters
}
