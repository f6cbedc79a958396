// Package traces keeps the newest sampled traces of a process and shows them.
//
// It owns a ring of finished spans and the view of a trace as a waterfall. It is
// what an operator looks at when there is no trace server, above all in
// development; a deployment exports its traces as well.
//
// Invariants: memory is bounded, by spans and by the size of each; only sampled
// spans come here, so a call that is not sampled pays nothing; texts are masked
// before anybody reads them. It never changes what is exported.
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
	// maxAttributes and maxKept bound what one span takes: less than 1 KiB as a rule,
	// 8 KiB at most. maxText is what is shown of a text.
	maxAttributes = 12
	maxKept       = 512
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

// NewRing makes a ring of size spans. mask is applied to every text that is read:
// under load far more is kept than anybody looks at, and to search the SQL of each
// query for secrets was a twentieth of a busy process.
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
	r.put(convert(s))
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
	list := r.kept()
	for i := range list {
		list[i] = r.shown(list[i])
	}
	return list
}

func (r *Ring) kept() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.spans[:r.next])
	if r.full {
		list = append(slices.Clone(r.spans[r.next:]), list...)
	}
	return list
}

// shown is a kept span as it may be read.
func (r *Ring) shown(s Span) Span {
	s.Name, s.Error = r.text(s.Name), r.text(s.Error)
	attributes := make(map[string]string, len(s.Attributes))
	for k, v := range s.Attributes {
		attributes[k] = r.text(v)
	}
	s.Attributes = attributes
	return s
}

func convert(s sdk.ReadOnlySpan) Span {
	out := Span{
		TraceID: s.SpanContext().TraceID().String(), ID: s.SpanContext().SpanID().String(),
		Name: bounded(s.Name()), Kind: s.SpanKind().String(),
		Start: s.StartTime(), Duration: s.EndTime().Sub(s.StartTime()),
		Attributes: map[string]string{},
	}
	if s.Parent().IsValid() {
		out.Parent = s.Parent().SpanID().String()
	}
	if status := s.Status(); status.Code == codes.Error {
		out.Error = bounded(cmp.Or(status.Description, "error"))
	}
	for _, a := range s.Attributes() {
		if len(out.Attributes) == maxAttributes {
			break
		}
		out.Attributes[string(a.Key)] = bounded(a.Value.String())
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

// bounded limits what is kept of a text. It ends between two words: half a token or
// address does not look like one when it is masked.
func bounded(s string) string {
	if len(s) <= maxKept {
		return s
	}
	return strings.Clone(s[:strings.LastIndexAny(s[:maxKept], " \t\n")+1]) + "…"
}

func (r *Ring) text(s string) string {
	// Masked before it is cut: half a token or address does not look like one.
	s = r.mask(strings.Join(strings.Fields(s), " "))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
