package traces

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Trace is what is known of one trace: its spans in the order of their start.
type Trace struct {
	ID    string `json:"trace_id"`
	Spans []Span `json:"spans"`
}

// Root is the first span: the one without a parent or, where that one is not
// known, the earliest.
func (t *Trace) Root() *Span {
	for i := range t.Spans {
		if t.Spans[i].Parent == "" {
			return &t.Spans[i]
		}
	}
	return &t.Spans[0]
}

// Start is when the first step began.
func (t *Trace) Start() time.Time { return t.Spans[0].Start }

// Duration is from the first start to the last end. It is longer than the root's
// where work goes on after the answer, as the delivery of a message does.
func (t *Trace) Duration() time.Duration {
	var end time.Time
	for i := range t.Spans {
		if e := t.Spans[i].End(); e.After(end) {
			end = e
		}
	}
	return end.Sub(t.Start())
}

// Has tells whether a step has text in its name.
func (t *Trace) Has(text string) bool {
	return slices.ContainsFunc(t.Spans, func(s Span) bool { return strings.Contains(s.Name, text) })
}

// Group makes traces of spans, also of several processes: a span that is there
// twice counts once. The newest trace comes first.
func Group(spans ...[]Span) []Trace {
	type identity struct{ trace, span string }
	seen := map[identity]bool{}
	byID := map[string]*Trace{}
	for _, list := range spans {
		for _, s := range list {
			id := identity{s.TraceID, s.ID}
			if seen[id] {
				continue
			}
			seen[id] = true
			t := byID[s.TraceID]
			if t == nil {
				t = &Trace{ID: s.TraceID}
				byID[s.TraceID] = t
			}
			t.Spans = append(t.Spans, s)
		}
	}
	out := make([]Trace, 0, len(byID))
	for _, t := range byID {
		slices.SortStableFunc(t.Spans, func(a, b Span) int {
			return cmp.Or(a.Start.Compare(b.Start), b.End().Compare(a.End()))
		})
		t.inherit()
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b Trace) int { return cmp.Or(b.Start().Compare(a.Start()), cmp.Compare(a.ID, b.ID)) })
	return out
}

// inherit gives a step that names no service that of the step it belongs to: a
// query runs in the service that asked.
func (t *Trace) inherit() {
	byID := make(map[string]*Span, len(t.Spans))
	for i := range t.Spans {
		byID[t.Spans[i].ID] = &t.Spans[i]
	}
	for i := range t.Spans {
		at := &t.Spans[i]
		for range t.Spans { // a broken trace may go in a circle
			if at.Service != "" || byID[at.Parent] == nil {
				break
			}
			at = byID[at.Parent]
		}
		t.Spans[i].Service = cmp.Or(t.Spans[i].Service, at.Service)
	}
}

// step is a span with its depth in the tree.
type step struct {
	*Span

	depth int
}

// steps walks the tree: each span before those that it caused. A span whose
// parent is not known stands at the top.
func (t *Trace) steps() []step {
	known := make(map[string]bool, len(t.Spans))
	for i := range t.Spans {
		known[t.Spans[i].ID] = true
	}
	children := map[string][]*Span{}
	for i := range t.Spans {
		s := &t.Spans[i]
		parent := s.Parent
		if !known[parent] || parent == s.ID {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	out := make([]step, 0, len(t.Spans))
	var walk func(parent string, depth int)
	walk = func(parent string, depth int) {
		list := children[parent]
		delete(children, parent) // each once, whatever the parents say
		for _, s := range list {
			out = append(out, step{s, depth})
			walk(s.ID, depth+1)
		}
	}
	walk("", 0)
	for i := range t.Spans { // those that cause each other, in a broken trace
		walk(t.Spans[i].Parent, 0)
	}
	return out
}
