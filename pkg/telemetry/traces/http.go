package traces

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// defaultTraces and maxTraces bound one answer.
	defaultTraces, maxTraces = 20, 1000
	// MaxRaise is for how long the sampling can be raised at once: nobody is to
	// forget it.
	MaxRaise = 10 * time.Minute
)

// Handler serves the traces of a ring on the admin port:
//
//	GET  /debug/traces?name=SendMessage&limit=20&format=json   the newest traces
//	GET  /debug/traces?trace=ID                                one of them
//	POST /debug/traces?ratio=1&for=30s                         sample more for a while
//
// Text for people unless format=json: a list and the waterfall of the newest, or
// of the one that is asked for. raise sets the sampling.
func Handler(r *Ring, raise func(ratio float64, until time.Time)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/traces", r.serve)
	mux.HandleFunc("POST /debug/traces", func(w http.ResponseWriter, req *http.Request) { serveRaise(w, req, raise) })
	return mux
}

func (r *Ring) serve(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	limit, err := strconv.Atoi(cmp.Or(q.Get("limit"), strconv.Itoa(defaultTraces)))
	if err != nil || limit < 1 || limit > maxTraces {
		http.Error(w, fmt.Sprintf("limit is a number from 1 to %d", maxTraces), http.StatusBadRequest)
		return
	}
	list := slices.DeleteFunc(Group(r.Spans()), func(t Trace) bool {
		return (q.Get("trace") != "" && t.ID != q.Get("trace")) || (q.Get("name") != "" && !t.Has(q.Get("name")))
	})
	list = list[:min(limit, len(list))]
	w.Header().Set("Cache-Control", "no-store")
	if q.Get("format") == "json" {
		w.Header().Set("Content-Type", "application/json")
		body, err := json.Marshal(list)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(append(body, '\n')) // the reader went away
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	var out strings.Builder
	if err := Show(&out, list, q.Get("trace") != ""); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write([]byte(out.String())) // the reader went away
}

// Show writes a list of traces and the waterfall of the newest; only is for a
// single trace: its waterfall and nothing else.
func Show(out *strings.Builder, list []Trace, only bool) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no such trace: most calls are not sampled (POST /debug/traces?ratio=1&for=30s samples all for a while)")
		return err
	}
	if !only {
		if err := WriteList(out, list); err != nil {
			return err
		}
		_ = out.WriteByte('\n') // a Builder takes everything
	}
	return Write(out, list[0])
}

func serveRaise(w http.ResponseWriter, req *http.Request, raise func(ratio float64, until time.Time)) {
	q := req.URL.Query()
	ratio, err := strconv.ParseFloat(cmp.Or(q.Get("ratio"), "1"), 64)
	if err != nil || !(ratio >= 0 && ratio <= 1) { // a NaN is not in the range
		http.Error(w, "ratio is a number from 0 to 1", http.StatusBadRequest)
		return
	}
	length, err := time.ParseDuration(cmp.Or(q.Get("for"), "30s"))
	if err != nil || length < 0 || length > MaxRaise {
		http.Error(w, "for is a duration of at most "+MaxRaise.String(), http.StatusBadRequest)
		return
	}
	until := time.Now().Add(length)
	raise(ratio, until)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	answer := fmt.Sprintf("%g of the new traces are sampled until %s\n", ratio, until.UTC().Format(time.RFC3339))
	_, _ = w.Write([]byte(answer)) //nolint:gosec // G705: plain text of two values of our own making; the asker went away
}
