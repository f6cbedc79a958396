package event_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/parleychat/parley/pkg/event"
)

// meters reads what all buses of this test program tell.
var meters = sdk.NewManualReader()

func init() { otel.SetMeterProvider(sdk.NewMeterProvider(sdk.WithReader(meters))) } //nolint:gochecknoinits // before the first bus, whichever test makes it

// lettersOf is how many dead letters of a listener are told of; -1 if none are.
func lettersOf(t *testing.T, listener string) int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, meters.Collect(t.Context(), &all))
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			data, ok := m.Data.(metricdata.Gauge[int64])
			if m.Name != "dead_letters_stored" || !ok {
				continue
			}
			for _, p := range data.DataPoints {
				if of, _ := p.Attributes.Value("listener"); of.AsString() == listener {
					return p.Value
				}
			}
		}
	}
	return -1
}

// The letters of a listener that a release renamed or removed are told of as long
// as they wait: they would expire unseen.
func TestLettersOfAListenerThatIsGoneAreCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count).Named("renamed.before")}, event.MaxAttempts(1))
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	_, err = w.bus.JetStream().PublishMsg(t.Context(), &nats.Msg{Subject: "event.zoo.animal.fed", Data: []byte{0xff, 0xff}}) // no event
	require.NoError(t, err)
	w.dead(1)
	stop()
	w.listen([]event.Listener{event.On("zoo", "animal.fed", event.Once, count).Named("renamed.after")}, event.MeasureEvery(often))
	require.Eventually(t, func() bool { return lettersOf(t, "renamed.before") == 1 }, patience, often, "it waits for a person still")
	_, err = w.bus.Drop(t.Context(), event.DeadFilter{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return lettersOf(t, "renamed.before") == 0 }, patience, often, "until it is gone")
}
