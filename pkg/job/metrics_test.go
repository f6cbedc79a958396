package job_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/parleychat/parley/pkg/job"
)

// meters reads what all runners of this test program tell.
var meters = sdk.NewManualReader()

func init() { otel.SetMeterProvider(sdk.NewMeterProvider(sdk.WithReader(meters))) } //nolint:gochecknoinits // before the first runner, whichever test makes it

// told is the last value of a gauge for a job, and whether there is one.
func told(t *testing.T, metric, label, value string) (float64, bool) {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, meters.Collect(t.Context(), &all))
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != metric {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					if got, ok := p.Attributes.Value(attribute.Key(label)); ok && got.AsString() == value {
						return p.Value, true
					}
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					if got, ok := p.Attributes.Value(attribute.Key(label)); ok && got.AsString() == value {
						return float64(p.Count), true
					}
				}
			}
		}
	}
	return 0, false
}

// counted is a counter of a job with an outcome.
func counted(t *testing.T, metric, name, outcome string) int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, meters.Collect(t.Context(), &all))
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			data, ok := m.Data.(metricdata.Sum[int64])
			if m.Name != metric || !ok {
				continue
			}
			for _, p := range data.DataPoints {
				of, _ := p.Attributes.Value("job_name")
				how, _ := p.Attributes.Value("outcome")
				if of.AsString() == name && how.AsString() == outcome {
					return p.Value
				}
			}
		}
	}
	return -1
}

// success is when a job last succeeded, as the leader tells.
func success(t *testing.T, name string) float64 {
	t.Helper()
	at, _ := told(t, "job_last_success_timestamp_seconds", "job_name", name)
	return at
}

func TestMetricsTellOfTheLastSuccess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	measured := job.Job{Name: "measured", Every: time.Hour, Run: func(context.Context) error { return nil }}
	one := w.replica(measured)
	success := func() float64 {
		at, _ := told(t, "job_last_success_timestamp_seconds", "job_name", "measured")
		return at
	}
	require.Eventually(t, func() bool { return success() == float64(w.clock.Now().Unix()) }, patience, often, "when it was")
	runs, ok := told(t, "job_run_seconds", "job_name", "measured")
	require.True(t, ok)
	require.InDelta(t, 1, runs, 0)
	one.stop()
	_, ok = told(t, "job_last_success_timestamp_seconds", "job_name", "measured")
	require.False(t, ok, "nobody leads")
	before := w.clock.Now()
	w.clock.Advance(time.Minute)
	two := w.replica(measured)
	require.Eventually(t, two.Leading, patience, often, "the next leads")
	require.Eventually(t, func() bool { return success() == float64(before.Unix()) }, patience, often, "it knows of the success before it")
}
