// Package telemetry owns logs, traces and metrics of a process: one logger, one
// tracer provider and one meter provider, set up once in main.
//
// Invariants: what is logged passes through the mask, so that no secret, token or
// address of a person reaches a log; every record made within a traced call
// carries its trace id; metrics of one process go to one registry and are told
// apart by the attribute "service", since one process may host several services.
// It never writes to standard output on behalf of others and keeps no logger in a
// global: a logger is handed to whoever logs.
package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/exemplar"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/parleychat/parley/pkg/telemetry/traces"
)

// Config says what a process tells and to whom.
type Config struct {
	// Service is the name of the process: a domain, "gateway" or "parley".
	Service string
	Version string

	LogLevel slog.Level
	// LogFormat is "json" or, also when empty, "text".
	LogFormat string
	// LogOutput is standard error when nil.
	LogOutput io.Writer

	// OTLPEndpoint is the URL to which traces go by OTLP over HTTP
	// ("http://collector:4318"). Empty: traces are made, for the ids in the
	// logs, and go nowhere.
	OTLPEndpoint string
	// SampleRatio is the part of the traces, from 0 to 1, that begin here and
	// are exported. A caller's decision is followed.
	SampleRatio float64
	// KeepSpans is how many sampled spans are kept in memory for /debug/traces,
	// 1 KiB each; DefaultKeepSpans when zero, none when negative.
	KeepSpans int

	// Reports says where errors are reported to, beside the log.
	Reports Reports
}

// Keep turns a setting, where 0 means none, into Config.KeepSpans.
func Keep(spans int) int {
	if spans == 0 {
		return -1
	}
	return spans
}

// TracesPath is where TracesHandler belongs on the admin port.
const TracesPath = "/debug/traces"

// DefaultKeepSpans are the last hundred traces, about.
const DefaultKeepSpans = 2000

// Telemetry is what Setup made.
type Telemetry struct {
	Log *slog.Logger

	metrics  http.Handler
	traces   http.Handler // nil: none are kept
	shutdown []func(context.Context) error
}

// Setup makes the logger and installs the global tracer and meter providers and
// the W3C propagator. Call it once per process, before anything is instrumented.
func Setup(ctx context.Context, cfg Config) (*Telemetry, error) {
	reports, err := newReports(cfg)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{Log: NewLogger(cfg)}
	res := resource.NewSchemaless(
		attribute.String("service.name", cfg.Service),
		attribute.String("service.version", cfg.Version),
		attribute.String("service.instance.id", instance()),
	)
	if err := t.setupTraces(ctx, cfg, res); err != nil {
		return nil, err
	}
	if err := t.setupMetrics(res); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	handler, err := newWatched(ctx, cfg.Service, t.Log.Handler(), reports)
	if err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	t.Log = slog.New(handler)
	if reports != nil {
		t.shutdown = append(t.shutdown, reports.close)
	}
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	ctx = context.WithoutCancel(ctx)
	// A collector that is away costs a line, not the process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		t.Log.WarnContext(ctx, "telemetry is not delivered", "error", err)
	}))
	return t, nil
}

// MetricsHandler serves all metrics of the process in the Prometheus format.
func (t *Telemetry) MetricsHandler() http.Handler { return t.metrics }

// TracesHandler shows the newest sampled traces of the process, see
// traces.Handler; nil where none are kept.
func (t *Telemetry) TracesHandler() http.Handler { return t.traces }

// Shutdown delivers what is still held. ctx bounds it.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, stop := range slices.Backward(t.shutdown) {
		errs = append(errs, stop(ctx))
	}
	t.shutdown = nil
	return errors.Join(errs...)
}

func (t *Telemetry) setupTraces(ctx context.Context, cfg Config, res *resource.Resource) error {
	sampling := newSampler(cfg.SampleRatio)
	opts := []trace.TracerProviderOption{
		trace.WithResource(res),
		trace.WithSampler(trace.ParentBased(sampling)),
	}
	if cfg.KeepSpans >= 0 {
		ring := traces.NewRing(cmp.Or(cfg.KeepSpans, DefaultKeepSpans), Mask)
		t.traces = traces.Handler(ring, sampling.raise)
		opts = append(opts, trace.WithSpanProcessor(ring))
	}
	if cfg.OTLPEndpoint != "" {
		exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.OTLPEndpoint))
		if err != nil {
			return fmt.Errorf("set up the export of traces: %w", err)
		}
		opts = append(opts, trace.WithBatcher(exporter))
	}
	provider := trace.NewTracerProvider(opts...)
	otel.SetTracerProvider(provider)
	t.shutdown = append(t.shutdown, provider.Shutdown)
	return nil
}

// maxSeries bounds the series of one instrument: a label that takes any value by
// mistake then costs its own metric and not the process.
const maxSeries = 4000

// callSeconds are the bounds of the latency of RPCs. Ours has one at each promise
// (200 ms for an API call); the library's own jump from 100 to 250 ms.
var callSeconds = []float64{.001, .002, .005, .01, .02, .05, .1, .2, .3, .5, 1, 2, 5, 10, 30}

func (t *Telemetry) setupMetrics(res *resource.Resource) error {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("register the metrics of the process: %w", err)
		}
	}
	exporter, err := promexporter.New(promexporter.WithRegisterer(registry), promexporter.WithoutScopeInfo())
	if err != nil {
		return fmt.Errorf("set up the metrics endpoint: %w", err)
	}
	provider := metric.NewMeterProvider(metric.WithResource(res), metric.WithReader(exporter),
		metric.WithCardinalityLimit(maxSeries),
		// The plain text format, which we serve, has no place for them.
		metric.WithExemplarFilter(exemplar.AlwaysOffFilter),
		metric.WithView(metric.NewView(metric.Instrument{Name: "rpc.*.call.duration"}, metric.Stream{
			Aggregation: metric.AggregationExplicitBucketHistogram{Boundaries: callSeconds},
			// The rest says nothing more: the protocol, the address, the code again.
			AttributeFilter: attribute.NewAllowKeysFilter("rpc.method", "rpc.response.status_code"),
		})))
	otel.SetMeterProvider(provider)
	t.shutdown = append(t.shutdown, provider.Shutdown)
	t.metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: promLog{t.Log}, ErrorHandling: promhttp.ContinueOnError})
	return nil
}

// promLog passes errors of the metrics endpoint on to the log.
type promLog struct{ log *slog.Logger }

func (l promLog) Println(v ...any) { l.log.Warn("metrics", "error", fmt.Sprint(v...)) }

// instance names this process among its replicas: the pod's name on Kubernetes.
func instance() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// Version is what the Go toolchain has stamped into the program: the commit, or
// the version of its module.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return info.Main.Version
}
