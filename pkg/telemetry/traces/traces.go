// Package traces keeps the newest sampled traces of a process and shows them.
//
// It owns a ring of finished spans and the view of a trace as a waterfall. It is
// what an operator looks at when there is no trace server, above all in
// development; a deployment exports its traces as well.
//
// Invariants: memory is bounded, by spans and by the size of each; only sampled
// spans come here, so a call that is not sampled pays nothing; texts are masked
// before they are kept. It never changes what is exported.
package traces

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

const (
	// maxAttributes and maxText bound what one span takes: about 2 KiB.
	maxAttributes = 12
	maxText       = 160
)

// Span is one step of a trace. It is what the admin port tells as JSON.
type Span struct {
	TraceID string `json:"trace_id"`
	ID      string `json:"span_id"`
	// Parent is empty for the first span of the trace.
	Parent string `json:"parent_id,omitempty"`
	Name   string `json:"name"`
	// Service is the domain or the process that did the step.
	Service string    `json:"service"`
	Kind    string    `json:"kind"`
	Start   time.Time `json:"start"`
	// Duration is in nanoseconds.
	Duration   time.Duration     `json:"duration_ns"`
	Error      string            `json:"error,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	// Links are the traces that this step also worked for.
	Links []string `json:"links,omitempty"`
}

// End is when the step was done.
func (s *Span) End() time.Time { return s.Start.Add(s.Duration) }

// Ring keeps the newest spans. It is a span processor; its methods are safe for
// concurrent use.
type Ring struct {
	mask func(string) string

	mu    sync.Mutex
	spans []Span
	next  int
	full  bool
}

// NewRing makes a ring of size spans. mask is applied to every text.
func NewRing(size int, mask func(string) string) *Ring {
	return &Ring{mask: mask, spans: make([]Span, max(size, 1))}
}

// OnStart implements trace.SpanProcessor.
func (r *Ring) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd keeps a finished span. A span that is recorded but not sampled is nobody's
// business.
func (r *Ring) OnEnd(s sdk.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	r.put(r.convert(s))
}

// Shutdown implements trace.SpanProcessor. The spans stay to be read.
func (r *Ring) Shutdown(context.Context) error { return nil }

// ForceFlush implements trace.SpanProcessor.
func (r *Ring) ForceFlush(context.Context) error { return nil }

func (r *Ring) put(s Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spans[r.next] = s
	r.next++
	if r.next == len(r.spans) {
		r.next, r.full = 0, true
	}
}

// Spans copies what is kept, the oldest first.
func (r *Ring) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return slices.Clone(r.spans[:r.next])
	}
	return append(slices.Clone(r.spans[r.next:]), r.spans[:r.next]...)
}

func (r *Ring) convert(s sdk.ReadOnlySpan) Span {
	out := Span{
		TraceID: s.SpanContext().TraceID().String(), ID: s.SpanContext().SpanID().String(),
		Name: r.text(s.Name()), Kind: s.SpanKind().String(),
		Start: s.StartTime(), Duration: s.EndTime().Sub(s.StartTime()),
		Attributes: map[string]string{},
	}
	if s.Parent().IsValid() {
		out.Parent = s.Parent().SpanID().String()
	}
	if status := s.Status(); status.Code == codes.Error {
		out.Error = r.text(cmp.Or(status.Description, "error"))
	}
	for _, a := range s.Attributes() {
		if len(out.Attributes) == maxAttributes {
			break
		}
		out.Attributes[string(a.Key)] = r.text(a.Value.String())
	}
	for _, l := range s.Links() {
		if len(out.Links) < maxAttributes && l.SpanContext.TraceID() != s.SpanContext().TraceID() {
			out.Links = append(out.Links, l.SpanContext.TraceID().String())
		}
	}
	out.Service = serviceOf(s, out.Attributes)
	return out
}

// serviceOf names who did the step. In the all-in-one program the process's name
// says nothing, but a step says it itself or is the call of a domain's procedure.
func serviceOf(s sdk.ReadOnlySpan, attributes map[string]string) string {
	if service := attributes["service"]; service != "" {
		return service
	}
	if rest, found := strings.CutPrefix(s.Name(), "parley."); found && s.SpanKind().String() == "server" && attributes["transport"] == "" {
		domain, _, _ := strings.Cut(rest, ".")
		return domain
	}
	if value, ok := s.Resource().Set().Value(attribute.Key("service.name")); ok && value.AsString() != allInOne {
		return value.AsString()
	}
	return ""
}

// allInOne is the name of the process that holds everything.
const allInOne = "parley"

func (r *Ring) text(s string) string {
	// Masked before it is cut: half a token or address does not look like one.
	s = r.mask(strings.Join(strings.Fields(s), " "))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
