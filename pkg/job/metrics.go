package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/parleychat/parley/pkg/job"

// The outcomes of job_runs_total.
const (
	outcomeDone   = "done"
	outcomeFailed = "failed"
	outcomeCutOff = "cut off"
	outcomePutOff = "put off" // its start could not be noted; tried again at once
)

type metrics struct {
	runs    metric.Int64Counter
	took    metric.Float64Histogram
	leader  metric.Int64ObservableGauge
	success metric.Float64ObservableGauge
}

func newMetrics() (*metrics, error) {
	meter := otel.Meter(scope)
	m := &metrics{}
	var errs [4]error
	m.runs, errs[0] = meter.Int64Counter("job_runs_total",
		metric.WithDescription("Runs of periodic jobs, by outcome."))
	m.took, errs[1] = meter.Float64Histogram("job_run_seconds", metric.WithUnit("s"),
		metric.WithDescription("How long runs of periodic jobs took."),
		metric.WithExplicitBucketBoundaries(.01, .1, 1, 10, 60, 600, 3600))
	m.leader, errs[2] = meter.Int64ObservableGauge("job_leader",
		metric.WithDescription("1 where the jobs of the service run, 0 at its other replicas."))
	m.success, errs[3] = meter.Float64ObservableGauge("job_last_success_timestamp_seconds", metric.WithUnit("s"),
		metric.WithDescription("When a job last succeeded or, before that, first started, in seconds since 1970; told by the leader."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	return m, nil
}

// job_name and not job: that is Prometheus' own name for what it scrapes.
func ofJob(service, job string) []attribute.KeyValue {
	return []attribute.KeyValue{attribute.String("service", service), attribute.String("job_name", job)}
}

func (m *metrics) ran(ctx context.Context, service, job, outcome string, took time.Duration) {
	if m == nil {
		return
	}
	of := ofJob(service, job)
	m.took.Record(ctx, took.Seconds(), metric.WithAttributes(of...))
	m.runs.Add(ctx, 1, metric.WithAttributes(append(of, attribute.String("outcome", outcome))...))
}

func (m *metrics) putOff(ctx context.Context, service, job string) {
	if m != nil {
		m.runs.Add(ctx, 1, metric.WithAttributes(append(ofJob(service, job), attribute.String("outcome", outcomePutOff))...))
	}
}

// start begins the counters whose rise an alert looks for: one that begins at one
// has not risen.
func (m *metrics) start(ctx context.Context, service string, jobs []Job) {
	if m == nil {
		return
	}
	for _, j := range jobs {
		for _, outcome := range []string{outcomeDone, outcomeFailed, outcomeCutOff, outcomePutOff} {
			m.runs.Add(ctx, 0, metric.WithAttributes(append(ofJob(service, j.Name), attribute.String("outcome", outcome))...))
		}
	}
}

// succeeded notes when a job last did, for the metrics.
func (r *Runner) succeeded(job string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[job] = at
}

// measure has the gauges told until the returned function is called.
func (r *Runner) measure(ctx context.Context) (stop func()) {
	if r.metrics == nil {
		return func() {}
	}
	registration, err := otel.Meter(scope).RegisterCallback(func(_ context.Context, o metric.Observer) error {
		r.observe(o)
		return nil
	}, r.metrics.leader, r.metrics.success)
	if err != nil {
		r.log.WarnContext(ctx, "the leader of the jobs is not measured", "error", err)
		return func() {}
	}
	return func() {
		if err := registration.Unregister(); err != nil {
			r.log.WarnContext(ctx, "end the measuring of the jobs", "error", err)
		}
	}
}

func (r *Runner) observe(o metric.Observer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	leads := int64(0)
	if r.leading {
		leads = 1
		// Of the leader only: what others knew last is old.
		now := r.clock.Now()
		for job, at := range r.done {
			// Of a clock that was ahead: told as now, it grows old from here on.
			if at.After(now) {
				at, r.done[job] = now, now
			}
			o.ObserveFloat64(r.metrics.success, float64(at.UnixMilli())/1000, metric.WithAttributes(ofJob(r.service, job)...))
		}
	}
	o.ObserveInt64(r.metrics.leader, leads, metric.WithAttributes(attribute.String("service", r.service)))
}
