package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// watched counts the warnings and errors that pass, and reports the errors.
type watched struct {
	slog.Handler

	lines   metric.Int64Counter
	reports *reports // may be nil
	// attrs are those of the logger that a report names; prefix is its group.
	attrs  map[string]string
	prefix string
}

// newWatched has the counts of the process's own service begin at zero: an alert
// looks for a rise.
func newWatched(ctx context.Context, service string, h slog.Handler, r *reports) (slog.Handler, error) {
	lines, err := otel.Meter("github.com/parleychat/parley/pkg/telemetry").Int64Counter("log_records_total",
		metric.WithDescription("Warnings and errors that were logged."))
	if err != nil {
		return nil, fmt.Errorf("make metric: %w", err)
	}
	for _, level := range []slog.Level{slog.LevelWarn, slog.LevelError} {
		lines.Add(ctx, 0, ofLines(service, level))
	}
	return &watched{Handler: h, lines: lines, reports: r}, nil
}

// Handle counts, reports and passes on.
func (w *watched) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelWarn {
		w.lines.Add(ctx, 1, ofLines(w.attrs["service"], record.Level))
	}
	if record.Level >= slog.LevelError && w.reports != nil {
		attrs := maps.Clone(w.attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		record.Attrs(func(a slog.Attr) bool {
			add(attrs, w.prefix, a)
			return true
		})
		w.reports.report(ctx, record, attrs)
	}
	return w.Handler.Handle(ctx, record) //nolint:wrapcheck // a handler among handlers
}

func ofLines(service string, level slog.Level) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("service", service), attribute.String("level", levelName(level)))
}

// levelName has two values only: levels between ours are none.
func levelName(level slog.Level) string {
	if level >= slog.LevelError {
		return "error"
	}
	return "warn"
}

// WithAttrs remembers what a report tells.
func (w *watched) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *w
	next.Handler = w.Handler.WithAttrs(attrs)
	next.attrs = maps.Clone(w.attrs)
	if next.attrs == nil {
		next.attrs = map[string]string{}
	}
	for _, a := range attrs {
		add(next.attrs, w.prefix, a)
	}
	return &next
}

// WithGroup prefixes the names of what follows.
func (w *watched) WithGroup(name string) slog.Handler {
	next := *w
	next.Handler = w.Handler.WithGroup(name)
	next.prefix = w.prefix + name + "."
	return &next
}

// add puts an attribute into the map if a report may tell it, groups by their
// members.
func add(into map[string]string, prefix string, a slog.Attr) {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range a.Value.Group() {
			add(into, prefix, member)
		}
		return
	}
	// A secret's name may stand in the group alone.
	if isSecret(strings.TrimSuffix(prefix, ".")) {
		return
	}
	if text, ok := reported(a); ok {
		into[prefix+a.Key] = text
	}
}
