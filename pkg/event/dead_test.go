package event_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// numbers are those of letters.
func numbers(letters []event.Dead) []uint64 {
	out := []uint64{}
	for _, d := range letters {
		out = append(out, d.Seq)
	}
	return out
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()

	none, err := w.bus.ListDead(ctx, event.DeadFilter{})
	require.NoError(t, err)
	require.Empty(t, none, "before anything was parked")
	_, err = w.bus.ShowDead(ctx, 1)
	require.ErrorIs(t, err, event.ErrNoDeadLetter)
	dropped, err := w.bus.Drop(ctx, event.DeadFilter{})
	require.NoError(t, err)
	require.Zero(t, dropped)

	fails := func(context.Context, pgx.Tx, *eventv1.Event, *wrapperspb.StringValue) error {
		return errors.New("no meat")
	}
	w.listen([]event.Listener{
		event.On("zoo", "animal.fed", event.Once, fails),
		event.On("zoo", "animal.fed", event.Once, fails).Named("second.animal.fed"),
		event.On("zoo", "animal.born", event.Once, fails),
	}, event.MaxAttempts(1))
	lion := fed("lion", 1, "full")
	w.publish(lion, event.New("animal.born", "cub", 1, wrapperspb.String("small")))
	w.dead(3)

	list := func(f event.DeadFilter) []event.Dead {
		t.Helper()
		letters, err := w.bus.ListDead(ctx, f)
		require.NoError(t, err)
		return letters
	}
	all := list(event.DeadFilter{})
	require.Equal(t, []uint64{1, 2, 3}, numbers(all))
	require.Len(t, list(event.DeadFilter{Service: "alpha"}), 3)
	require.Empty(t, list(event.DeadFilter{Service: "beta"}))
	require.Len(t, list(event.DeadFilter{Listener: "animal.fed"}), 1)
	require.Len(t, list(event.DeadFilter{Service: "alpha", Listener: "second.animal.fed"}), 1)
	require.Len(t, list(event.DeadFilter{Type: "animal.fed"}), 2)
	require.Len(t, list(event.DeadFilter{EventID: lion.GetId(), Listener: "animal.fed"}), 1)
	require.Equal(t, []uint64{2}, numbers(list(event.DeadFilter{After: 1, Limit: 1})))
	require.Equal(t, []uint64{1, 2}, numbers(list(event.DeadFilter{UpTo: 2})))
	require.Empty(t, list(event.DeadFilter{Seq: 1, Service: "beta"}), "the number and the rest have to fit")

	born := list(event.DeadFilter{Type: "animal.born"})[0]
	shown, err := w.bus.ShowDead(ctx, born.Seq)
	require.NoError(t, err)
	require.Equal(t, "event.zoo.animal.born", shown.Subject)
	require.Contains(t, shown.Letter.GetError(), "no meat")
	require.Equal(t, "cub", shown.Letter.GetEvent().GetKey())

	// Who parks an event and dies has it delivered again after AckWait, and parked by another: one letter.
	letters, err := w.bus.JetStream().Stream(ctx, "dead-letters")
	require.NoError(t, err)
	events, err := w.bus.JetStream().Stream(ctx, event.StreamName("zoo"))
	require.NoError(t, err)
	consumers := 0
	for c := range events.ListConsumers(ctx).Info() {
		consumers++
		require.Greater(t, letters.CachedInfo().Config.Duplicates, 2*c.Config.AckWait)
	}
	require.Equal(t, 3, consumers)

	dropped, err = w.bus.Drop(ctx, event.DeadFilter{Seq: born.Seq})
	require.NoError(t, err)
	require.Equal(t, 1, dropped)
	_, err = w.bus.ShowDead(ctx, born.Seq)
	require.ErrorIs(t, err, event.ErrNoDeadLetter)

	// A replay that fails again is parked again, and is not taken a second time.
	replayed, err := w.bus.Replay(ctx, event.DeadFilter{Listener: "animal.fed", UpTo: 3})
	require.NoError(t, err)
	require.Equal(t, 1, replayed)
	w.dead(3) // one was left, and both listeners have had the event again
	replayed, err = w.bus.Replay(ctx, event.DeadFilter{Listener: "animal.fed", UpTo: 3})
	require.NoError(t, err)
	require.Zero(t, replayed)
}

// Two people do the same at the same moment: each letter is one's or the other's.
func TestTwoAtTheSameDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const letters = 60
	stop := w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, func(context.Context, pgx.Tx, *eventv1.Event, *wrapperspb.StringValue) error {
		return errors.New("no meat")
	})}, event.MaxAttempts(1))
	for i := range letters {
		w.publish(fed(fmt.Sprint(i), 1, "full"))
	}
	w.dead(letters)
	stop()
	other := w.connect()
	removed := 0
	both := func(do func(*event.Bus, context.Context, event.DeadFilter) (int, error), f event.DeadFilter) {
		t.Helper()
		var group errgroup.Group
		var mine, theirs int
		group.Go(func() (err error) { mine, err = do(w.bus, t.Context(), f); return err })
		group.Go(func() (err error) { theirs, err = other.Replay(t.Context(), f); return err })
		require.NoError(t, group.Wait())
		removed += mine + theirs
	}
	both((*event.Bus).Replay, event.DeadFilter{Limit: letters / 2})
	both((*event.Bus).Drop, event.DeadFilter{})
	require.Equal(t, letters, removed, "each is counted by one of them")
	left, err := w.bus.ListDead(t.Context(), event.DeadFilter{})
	require.NoError(t, err)
	require.Empty(t, left)
}

// A letter that nobody can read is listed, refused by Replay and dropped.
func TestUnreadableDeadLetter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count)}, event.MaxAttempts(1))
	_, err := w.bus.EnsureStream(ctx, "zoo")
	require.NoError(t, err)
	_, err = w.bus.JetStream().Publish(ctx, "event.zoo.animal.fed", []byte{0xff, 0xff}) // no event: makes the stream
	require.NoError(t, err)
	w.dead(1)
	msg := nats.NewMsg("dead.alpha.animal.fed")
	msg.Data = []byte{0xff, 0xff}
	_, err = w.bus.JetStream().PublishMsg(ctx, msg)
	require.NoError(t, err)
	letters := w.dead(2)
	for _, d := range letters {
		require.NotEmpty(t, d.Letter.GetError())
		_, err = w.bus.Replay(ctx, event.DeadFilter{Seq: d.Seq})
		require.ErrorContains(t, err, fmt.Sprintf("dead letter %d", d.Seq))
	}
	dropped, err := w.bus.Drop(ctx, event.DeadFilter{})
	require.NoError(t, err)
	require.Equal(t, 2, dropped)
}
