package telemetry

import (
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
)

// sampler decides by a ratio that an operator may raise for a while.
type sampler struct {
	base  trace.Sampler
	boost atomic.Pointer[boost]
}

type boost struct {
	trace.Sampler

	until time.Time
}

func newSampler(ratio float64) *sampler { return &sampler{base: trace.TraceIDRatioBased(ratio)} }

// raise has the part ratio of the new traces sampled until then.
func (s *sampler) raise(ratio float64, until time.Time) {
	s.boost.Store(&boost{Sampler: trace.TraceIDRatioBased(ratio), until: until})
}

// ShouldSample implements trace.Sampler. Without a boost it costs one load more
// than its base.
func (s *sampler) ShouldSample(p trace.SamplingParameters) trace.SamplingResult {
	if b := s.boost.Load(); b != nil {
		if time.Now().Before(b.until) {
			return b.ShouldSample(p)
		}
		s.boost.CompareAndSwap(b, nil)
	}
	return s.base.ShouldSample(p)
}

// Description implements trace.Sampler.
func (s *sampler) Description() string { return fmt.Sprintf("Raisable{%s}", s.base.Description()) }
