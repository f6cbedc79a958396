package cache

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// result is how a value was come by: an attribute of cache_requests_total.
type result int

const (
	// hit: from Redis.
	hit result = iota
	// shared: from the source, by another call of this process that was reading it.
	shared
	// miss: from the source, and put into Redis.
	miss
	// away: from the source, because Redis could not be asked.
	away
	// failed: the source could not be read.
	failed
	results
)

func (r result) String() string {
	return [...]string{"hit", "shared", "miss", "away", "failed"}[r]
}

// The results of cache_invalidations_total.
const (
	invalidated = iota
	notInvalidated
	invalidations
)

// instruments count for one cache; sets of attributes are made once, because hits
// are many.
type instruments struct {
	requests      metric.Int64Counter
	invalidations metric.Int64Counter
	byResult      [results]metric.MeasurementOption
	byOutcome     [invalidations]metric.MeasurementOption
}

// ofNobody is the context of what no call has caused: caches are made before any.
var ofNobody = context.Background() //nolint:forbidigo // see above

func newInstruments(name string) (*instruments, error) {
	meter := otel.Meter("github.com/parleychat/parley/pkg/cache")
	m := &instruments{}
	var errs [2]error
	m.requests, errs[0] = meter.Int64Counter("cache_requests_total",
		metric.WithDescription("Values asked of a cache, by where they came from: hit, shared, miss, away, failed."))
	m.invalidations, errs[1] = meter.Int64Counter("cache_invalidations_total",
		metric.WithDescription("Values that a cache was told to forget, by outcome: done or failed."))
	cache := attribute.String("cache", name)
	for r := range m.byResult {
		m.byResult[r] = metric.WithAttributeSet(attribute.NewSet(cache, attribute.String("result", result(r).String())))
	}
	for i, outcome := range []string{invalidated: "done", notInvalidated: "failed"} {
		m.byOutcome[i] = metric.WithAttributeSet(attribute.NewSet(cache, attribute.String("result", outcome)))
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	m.begin(ofNobody)
	return m, nil
}

// begin has the counters begin at zero: an alert sees a rise, and the list of
// metrics is held against what a process tells.
func (m *instruments) begin(ctx context.Context) {
	for _, of := range m.byResult {
		m.requests.Add(ctx, 0, of)
	}
	for _, of := range m.byOutcome {
		m.invalidations.Add(ctx, 0, of)
	}
}

func (m *instruments) count(ctx context.Context, r result, n int) {
	if n > 0 {
		m.requests.Add(ctx, int64(n), m.byResult[r])
	}
}

func (m *instruments) forgot(ctx context.Context, n int, err error) {
	outcome := invalidated
	if err != nil {
		outcome = notInvalidated
	}
	m.invalidations.Add(ctx, int64(n), m.byOutcome[outcome])
}

// Counter counts for a cache that is no Cache: one in the memory of a process, of
// what may be out of date. It is counted beside the others.
type Counter struct{ m *instruments }

// NewCounter makes the counter of the cache with that name.
func NewCounter(name string) (Counter, error) {
	m, err := newInstruments(name)
	if err != nil {
		return Counter{}, fmt.Errorf("measure cache %s: %w", name, err)
	}
	return Counter{m}, nil
}

// Count notes one question.
func (c Counter) Count(ctx context.Context, known bool) {
	if known {
		c.m.count(ctx, hit, 1)
	} else {
		c.m.count(ctx, miss, 1)
	}
}
