package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// InProcess is the Dialer of services that live in one process. A call runs the
// callee's own HTTP handler, so that nothing differs from a call over the
// network except its cost: unary calls run on the caller's goroutine with pooled
// buffers, streams through a bounded pipe.
type InProcess struct {
	mu       sync.RWMutex
	services map[string]http.Handler
}

// NewInProcess makes an empty registry.
func NewInProcess() *InProcess { return &InProcess{services: make(map[string]http.Handler)} }

// Register makes a service known, or replaces it. Callers that hold its backend
// already reach the new one.
func (p *InProcess) Register(service string, h http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.services[service] = h
}

// Backend returns the way to a service, which may be registered later.
func (p *InProcess) Backend(service string) Backend {
	return newBackend("http://"+service, &inProcessTransport{registry: p, service: service})
}

func (p *InProcess) handler(service string) http.Handler {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.services[service]
}

// errNotRegistered: the service has not started yet, or never will.
var errNotRegistered = errors.New("it is not in this process")

type inProcessTransport struct {
	registry *InProcess
	service  string
}

// RoundTrip runs the handler.
func (t *inProcessTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		closeBody(r)
		return nil, err //nolint:wrapcheck // the context's error, as a transport returns it
	}
	h := t.registry.handler(t.service)
	if h == nil {
		closeBody(r)
		return nil, errAway(t.service, errNotRegistered)
	}
	if isUnary(r) {
		return roundTripUnary(h, r)
	}
	return roundTripStream(h, r)
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// isUnary says whether the whole request is there and the answer is wanted whole:
// unary Connect, and plain GET.
func isUnary(r *http.Request) bool {
	switch contentType(r.Header) {
	case "application/proto", "application/json":
		return true
	default:
		return r.Method == http.MethodGet && r.Header.Get("Upgrade") == ""
	}
}

func contentType(h http.Header) string {
	values := h["Content-Type"]
	if len(values) == 0 {
		return ""
	}
	full, _, _ := strings.Cut(values[0], ";")
	return strings.TrimSpace(full)
}

// incoming makes the server's view of a request: its own header map, for the
// handler changes it, and a context without the caller's values.
func incoming(ctx context.Context, r *http.Request) *http.Request {
	in := r.WithContext(&isolated{Context: ctx}) //nolint:contextcheck // inherits the end, on purpose not the values
	in.Header = maps.Clone(r.Header)
	if in.Header == nil {
		in.Header = make(http.Header)
	}
	dropTimeout(ctx, in.Header)
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	in.RequestURI = r.URL.RequestURI()
	in.RemoteAddr = "in-process"
	return in
}

// dropTimeout takes the deadline out of the header if the context ends the call
// at the same time or sooner: the handler has that context, and a second timer
// would be a fifth of the cost of the call. A proxy's header may be shorter than
// its context; then it stays.
func dropTimeout(ctx context.Context, h http.Header) {
	values := h["Connect-Timeout-Ms"]
	deadline, bounded := ctx.Deadline()
	if !bounded || len(values) != 1 {
		return
	}
	// The header was written some microseconds ago and cut to milliseconds.
	const slack = 5 * time.Millisecond
	ms, err := strconv.ParseInt(values[0], 10, 64)
	if err == nil && len(values[0]) <= 10 && time.Until(deadline) <= time.Duration(ms)*time.Millisecond+slack {
		delete(h, "Connect-Timeout-Ms")
	}
}

// isolated passes on the end of a context and none of its values: who the caller
// is, its transaction or its span must not reach a callee by the back door that
// is closed over the network.
type isolated struct{ context.Context } //nolint:containedctx // it is a context

// Value knows nothing.
func (*isolated) Value(any) any { return nil }

// AfterFunc lets derived contexts follow without a goroutine of their own; see
// context.AfterFunc.
func (i *isolated) AfterFunc(fn func()) (stop func() bool) { return context.AfterFunc(i.Context, fn) }

// maxPooled keeps a rare huge answer from staying in the pool, in bytes.
const maxPooled = 1 << 18

var answers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// recorder is the response of a unary call.
type recorder struct {
	header http.Header
	status int
	body   *bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p) //nolint:wrapcheck // never fails
}

// Flush does nothing: the answer goes out whole.
func (w *recorder) Flush() {}

func roundTripUnary(h http.Handler, r *http.Request) (res *http.Response, err error) {
	defer func() {
		// Only http.ErrAbortHandler gets here: over the network the connection breaks.
		if p := recover(); p != nil {
			res, err = nil, io.ErrUnexpectedEOF
		}
	}()
	body, ok := answers.Get().(*bytes.Buffer)
	if !ok {
		body = new(bytes.Buffer)
	}
	w := &recorder{header: make(http.Header, 8), body: body}
	in := incoming(r.Context(), r)
	defer func() { _ = in.Body.Close() }()
	h.ServeHTTP(w, in)
	w.WriteHeader(http.StatusOK)
	return response(r, w.status, w.header, &answer{buffer: atomicBuffer(body)}, int64(body.Len())), nil
}

func response(r *http.Request, status int, header http.Header, body io.ReadCloser, length int64) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status,
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: header, Trailer: make(http.Header),
		Body: body, ContentLength: length, Request: r,
	}
}

// answer is the body of a unary response. Close gives its buffer back, once.
type answer struct{ buffer *atomic.Pointer[bytes.Buffer] }

func atomicBuffer(b *bytes.Buffer) *atomic.Pointer[bytes.Buffer] {
	p := new(atomic.Pointer[bytes.Buffer])
	p.Store(b)
	return p
}

func (a *answer) Read(p []byte) (int, error) {
	b := a.buffer.Load()
	if b == nil {
		return 0, fmt.Errorf("read response: %w", http.ErrBodyReadAfterClose)
	}
	return b.Read(p) //nolint:wrapcheck // io.EOF must stay bare
}

func (a *answer) Close() error {
	if b := a.buffer.Swap(nil); b != nil && b.Cap() <= maxPooled {
		b.Reset()
		answers.Put(b)
	}
	return nil
}
