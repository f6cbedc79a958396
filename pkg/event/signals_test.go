package event_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
)

func TestSignals(t *testing.T) {
	t.Parallel()

	t.Run("StandInAShortStreamOfTheirOwn", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		require.NoError(t, w.bus.Signal(t.Context(), "zoo", w.clock.Now(), fed("a", 0, ""), fed("b", 0, "")))
		stream, err := w.bus.EnsureStream(t.Context(), event.Signals("zoo"))
		require.NoError(t, err)
		info, err := stream.Info(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 1, info.State.Msgs, "the two of one call")
		require.LessOrEqual(t, info.Config.MaxAge, time.Hour)
		require.Equal(t, "events-zoo-signals", info.Config.Name)
		zoo, err := w.bus.EnsureStream(t.Context(), "zoo")
		require.NoError(t, err)
		require.Zero(t, zoo.CachedInfo().State.Msgs, "none is among the events")
	})
	t.Run("AreHeardByListeners", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.listen([]event.Listener{event.On(event.Signals("zoo"), "animal.fed", event.Once, count)})
		require.NoError(t, w.bus.Signal(t.Context(), "zoo", w.clock.Now(), fed("a", 0, "")))
		require.Eventually(t, func() bool { n, _, _ := w.effect("a"); return n == 1 }, patience, often)
	})
	t.Run("GoOnAfterTheStreamIsLost", func(t *testing.T) {
		t.Parallel()
		w := newWorldAt(t, testkit.PrivateNATS(t).URL)
		require.NoError(t, w.bus.Signal(t.Context(), "zoo", w.clock.Now(), fed("a", 0, "")))
		require.NoError(t, w.bus.JetStream().DeleteStream(t.Context(), event.StreamName(event.Signals("zoo"))))
		require.NoError(t, w.bus.Signal(t.Context(), "zoo", w.clock.Now(), fed("b", 0, "")))
	})
	t.Run("AreChecked", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		require.Error(t, w.bus.Signal(t.Context(), "zoo", w.clock.Now(), event.New("fed", "a", 0, nil)))
	})
}
