// Package admin owns the port for operators: liveness, readiness, metrics,
// profiles and what a process shows beside them, such as its recent traces. It is never reachable from outside the cluster and has no access
// control of its own.
//
// Liveness only says that the process answers: a dependency that is away is no
// reason to restart. Readiness fails while the process starts, while a check of a
// needed dependency fails, and from the moment it drains.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"sync"
	"time"
)

const (
	checkTimeout = 2 * time.Second
	// Answers are remembered for so long, so that probes by many cost one check.
	checkAge = 500 * time.Millisecond
)

// Check tests one dependency; nil means good. ctx bounds it.
type Check func(ctx context.Context) error

// Need says what the failure of a check means.
type Need int

const (
	// Always: the process is not ready while the check fails.
	Always Need = iota
	// Once: the process is not ready until the check has succeeded once. After
	// that its failure is reported and no more: every replica would leave the
	// balancer at the same time for something that they can do without.
	Once
)

// Server is the admin port. Its methods are safe for concurrent use.
type Server struct {
	log     *slog.Logger
	metrics http.Handler

	mu       sync.Mutex
	checks   []*check
	pages    map[string]http.Handler
	started  bool
	draining bool
}

type check struct {
	name string
	need Need
	run  Check

	mu   sync.Mutex // held while running: one at a time
	at   time.Time
	err  error
	once bool
}

// New returns a server that is not ready until Started is called. metrics may be
// nil.
func New(log *slog.Logger, metrics http.Handler) *Server {
	return &Server{log: log, metrics: metrics, pages: map[string]http.Handler{}}
}

// AddCheck makes readiness depend on run.
func (s *Server) AddCheck(name string, need Need, run Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks = append(s.checks, &check{name: name, need: need, run: run})
}

// Handle serves a page more, for operators as all others; pattern is a path of
// http.ServeMux, without a method. To be called before Serve; nil serves nothing.
func (s *Server) Handle(pattern string, h http.Handler) {
	if h == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[pattern] = h
}

// Started says that everything has been set up: from now on the checks decide.
func (s *Server) Started() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true
}

// Drain makes the process not ready for good.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
}

// Status is the answer of /readyz.
type Status struct {
	Ready bool `json:"ready"`
	// Why is set when not ready for another reason than a check: "starting",
	// "draining".
	Why string `json:"why,omitempty"`
	// Checks maps the name of each check to "ok" or to its error.
	Checks map[string]string `json:"checks,omitempty"`
}

// Status runs the checks, all at once, and says whether the process is ready.
func (s *Server) Status(ctx context.Context) Status {
	s.mu.Lock()
	checks, started, draining := append([]*check(nil), s.checks...), s.started, s.draining
	s.mu.Unlock()

	status := Status{Ready: true, Checks: map[string]string{}}
	results := make([]error, len(checks))
	bars := make([]bool, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { results[i], bars[i] = c.result(ctx) })
	}
	wg.Wait()
	for i, c := range checks {
		status.Checks[c.name] = "ok"
		if results[i] != nil {
			status.Checks[c.name] = results[i].Error()
		}
		status.Ready = status.Ready && !bars[i]
	}
	switch {
	case draining:
		status.Ready, status.Why = false, "draining"
	case !started:
		status.Ready, status.Why = false, "starting"
	}
	return status
}

// result runs the check unless it has just been run. bars tells whether it keeps
// the process from being ready.
func (c *check) result(ctx context.Context) (err error, bars bool) { //nolint:revive // the error is the result, not a failure of the call
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || time.Since(c.at) > checkAge {
		// The probe that asks may give up; the answer serves the next one.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		c.err = c.run(ctx)
		c.at = time.Now()
		c.once = c.once || c.err == nil
	}
	return c.err, c.err != nil && (c.need == Always || !c.once)
}

// Handler serves /livez, /readyz, /metrics, /debug/pprof/, /debug/memory/release and the
// pages of Handle.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n")) // the prober went away
	})
	mux.HandleFunc("GET /readyz", s.readyz)
	if s.metrics != nil {
		mux.Handle("GET /metrics", s.metrics)
	}
	s.mu.Lock()
	for pattern, page := range s.pages {
		mux.Handle(pattern, page)
	}
	s.mu.Unlock()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("POST /debug/memory/release", releaseMemory)
	return mux
}

// releaseMemory collects garbage and gives everything free back to the system: what is
// resident then is what the process needs.
func releaseMemory(w http.ResponseWriter, _ *http.Request) {
	debug.FreeOSMemory()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	status := s.Status(r.Context())
	body, err := json.Marshal(status)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !status.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(body, '\n')) // the prober went away
}

// Serve answers on l until ctx ends, and closes l. Running requests are cut off:
// nobody waits for a probe or a profile.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.measure(ctx)()
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = srv.Close() // closing listeners and sockets; there is nothing to do about an error
	})
	err := srv.Serve(l)
	if stop() {
		return fmt.Errorf("serve the admin port: %w", err)
	}
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the admin port: %w", err)
}
