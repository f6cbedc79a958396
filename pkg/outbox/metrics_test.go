package outbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// meters reads what all outboxes of this test program tell.
var meters = sdk.NewManualReader()

func init() { otel.SetMeterProvider(sdk.NewMeterProvider(sdk.WithReader(meters))) } //nolint:gochecknoinits // before the first outbox, whichever test makes it

// told are the gauges of a service, by name.
func told(t *testing.T, service string) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, meters.Collect(t.Context(), &all))
	out := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					if of, _ := p.Attributes.Value("service"); of.AsString() == service {
						out[m.Name] = p.Value
					}
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					if of, _ := p.Attributes.Value("service"); of.AsString() == service {
						out[m.Name] = float64(p.Value)
					}
				}
			}
		}
	}
	return out
}

// A broken row is told as one, and not as an outage of the bus that lasts for ever.
func TestBrokenRowIsNotOfTheBacklog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := outbox.New(w.pool, w.bus, "farm", w.clock, testkit.Logger(t), outbox.WithGrace(0),
		outbox.WithPoll(50*time.Millisecond), outbox.WithCountEvery(50*time.Millisecond))
	require.NoError(t, o.Prepare(t.Context()))
	row, err := o.Row(t.Context(), []*eventv1.Event{fed("x")})
	require.NoError(t, err)
	one := int64(1)
	require.NoError(t, insertRow(t.Context(), w, row, []*int64{&one, &one})) // two versions, one event
	w.clock.Advance(5 * time.Minute)
	w.run(o)
	shows := func(broken float64) func() bool {
		return func() bool {
			is := told(t, "farm")
			return is["outbox_broken_rows"] == broken && is["outbox_pending_rows"] == 0 && is["outbox_oldest_pending_seconds"] == 0
		}
	}
	require.Eventually(t, shows(1), patience, often, "it waits for a person, and nothing for the bus")
	require.Equal(t, 1, w.waiting())
	_, err = w.pool.Exec(t.Context(), `UPDATE outbox SET published_at = created_at`)
	require.NoError(t, err)
	require.Eventually(t, shows(0), patience, often, "somebody has seen to it")
}
