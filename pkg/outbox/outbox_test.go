package outbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

func TestTx(t *testing.T) {
	t.Parallel()
	t.Run("PublishesAllEventsOfATransactionByOneRow", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		o := w.outbox(outbox.WithGrace(time.Hour)) // the relay has no part in it
		w.run(o)
		require.NoError(t, o.Tx(t.Context(), func(_ pgx.Tx, emit func(...*eventv1.Event) error) error {
			return errors.Join(emit(fed("lion"), fed("mouse")), emit(fed("owl")))
		}))
		var rows int
		require.NoError(t, w.pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&rows))
		require.Equal(t, 1, rows)
		w.drained()
		events := w.published()
		require.Equal(t, []string{"lion", "mouse", "owl"}, keys(events))
		for _, ev := range events {
			require.NotEmpty(t, ev.GetId())
			require.Equal(t, w.clock.Now(), ev.GetTime().AsTime())
		}
	})
	t.Run("AFailureEmitsNothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		o := w.outbox()
		w.run(o)
		failed := errors.New("second thoughts")
		err := o.Tx(t.Context(), func(_ pgx.Tx, emit func(...*eventv1.Event) error) error {
			return errors.Join(emit(fed("lion")), failed)
		})
		require.ErrorIs(t, err, failed)
		err = o.Tx(t.Context(), func(_ pgx.Tx, emit func(...*eventv1.Event) error) error {
			return emit(fed("mouse"), event.New("not a type", "x", 1, nil))
		})
		require.ErrorContains(t, err, "not a type")
		w.change(o, "owl")
		w.drained()
		require.Equal(t, []string{"owl"}, keys(w.published()))
	})
	t.Run("NoEventNoRow", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		o := w.outbox()
		require.NoError(t, o.Tx(t.Context(), func(tx pgx.Tx, _ func(...*eventv1.Event) error) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO change VALUES ('x')`)
			return err
		}))
		require.Zero(t, w.waiting())
	})
}

func TestAppendFromAListener(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := w.outbox(outbox.WithGrace(time.Hour)) // the relay has no part in it
	w.run(o)
	failures := 2
	ls := event.NewListeners("zoo", w.bus, w.pool, w.clock, testkit.Logger(t), event.Backoff(func(int) time.Duration { return often }))
	require.NoError(t, ls.Add(event.On("farm", "animal.sold", event.Once,
		func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, _ *wrapperspb.StringValue) error {
			if err := o.Append(ctx, tx, fed(ev.GetKey())); err != nil {
				return err
			}
			if failures--; failures >= 0 {
				return errors.New("rolled back, and its event with it")
			}
			return nil
		})))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ls.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })

	sold := event.New("animal.sold", "lion", 1, wrapperspb.String("cheap"))
	require.NoError(t, w.bus.Publish(t.Context(), "farm", w.clock.Now(), sold))
	require.Eventually(t, func() bool { return len(w.published()) > 0 }, patience, often, "published after the listener's commit")
	w.drained()
	require.Equal(t, []string{"lion"}, keys(w.published()))

	require.NoError(t, pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		return errors.Join(o.Append(t.Context(), tx), o.Append(t.Context(), tx, fed("left to the relay")))
	}))
	require.Equal(t, 1, w.waiting())
}

// insertRow is what messaging's own statement does.
func insertRow(ctx context.Context, w *world, row outbox.Row, versions []*int64) error {
	_, err := w.pool.Exec(ctx, `INSERT INTO outbox (id, created_at, envelopes, key_versions) VALUES ($1, $2, $3, $4)`,
		row.ID, row.CreatedAt, row.Envelopes, versions)
	return err
}

func TestRowCompletedByKeyVersions(t *testing.T) {
	t.Parallel()
	seven, nine := int64(7), int64(9)
	versions := []*int64{&seven, nil, &nine}
	for name, byRelay := range map[string]bool{"ByTheCommittingProcess": false, "ByTheRelay": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o := w.outbox()
			row, err := o.Row(t.Context(), []*eventv1.Event{fed("lion"), fed("never"), fed("owl")})
			require.NoError(t, err)
			require.NoError(t, insertRow(t.Context(), w, row, versions))
			if !byRelay {
				o.Committed(row, versions)
			}
			w.run(o)
			w.drained()
			events := w.published()
			require.Equal(t, []string{"lion", "owl"}, keys(events))
			require.EqualValues(t, 7, events[0].GetKeyVersion())
			require.EqualValues(t, 9, events[1].GetKeyVersion())
		})
	}
	t.Run("NothingHappenedIsMarkedAtOnce", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		o := w.outbox()
		row, err := o.Row(t.Context(), []*eventv1.Event{fed("never")})
		require.NoError(t, err)
		require.NoError(t, insertRow(t.Context(), w, row, []*int64{nil}))
		o.Committed(row, []*int64{nil})
		w.run(o)
		w.drained()
		require.Empty(t, w.published())
	})
}

func TestBrokenRowIsKeptAndStaysOutOfTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := w.outbox(outbox.WithRelayBatch(1))
	row, err := o.Row(t.Context(), []*eventv1.Event{fed("x")})
	require.NoError(t, err)
	one := int64(1)
	require.NoError(t, insertRow(t.Context(), w, row, []*int64{&one, &one})) // two versions, one event
	w.change(o, "behind it")                                                 // never handed to a publisher: Run comes later
	second := w.outbox(outbox.WithRelayBatch(1))
	w.run(second)
	require.Eventually(t, func() bool { return len(w.published()) == 1 }, patience, often, "the next one is published")
	require.Equal(t, []string{"behind it"}, keys(w.published()))
	require.Eventually(t, func() bool { return w.waiting() == 1 }, patience, often, "it is marked after that, and the other one never")
}

func TestMidnight(t *testing.T) {
	t.Parallel()
	t.Run("TheClockMayJumpBeyondThePartitions", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		o := w.outbox()
		w.run(o)
		for _, jump := range []time.Duration{0, 24 * time.Hour, 30 * 24 * time.Hour, -60 * 24 * time.Hour} {
			w.clock.Advance(jump)
			w.change(o, jump.String())
		}
		w.drained()
		require.Len(t, w.published(), 4)
	})
	t.Run("APartitionWithUnmarkedRowsIsNotDropped", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		o := w.outbox() // does not run: nothing is published
		w.change(o, "left")
		w.clock.Advance(30 * 24 * time.Hour)
		_, err := o.Partitions().Drop(t.Context(), w.pool, w.clock.Now())
		require.ErrorIs(t, err, postgres.ErrGuarded)
		require.Equal(t, 1, w.waiting())

		w.run(w.outbox())
		w.drained()
		require.Equal(t, []string{"left"}, keys(w.published()))
		_, err = o.Partitions().Drop(t.Context(), w.pool, w.clock.Now())
		require.NoError(t, err)
		var n int
		require.NoError(t, w.pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&n))
		require.Zero(t, n)
	})
}
