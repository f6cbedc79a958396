package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
)

// pipeWindow is how much of a stream's answer may wait for its reader, in bytes:
// the window of HTTP/2, so that what works over the network works here.
const pipeWindow = 1 << 18

// errStreamClosed is what a handler gets that writes to a caller who left.
var errStreamClosed = errors.New("stream closed")

// pipe carries the answer of a streaming call from the handler's goroutine to
// the caller.
type pipe struct {
	mu     sync.Mutex
	turn   sync.Cond
	data   bytes.Buffer
	end    error  // what Read returns after the data; nil: still open
	last   func() // run by the Read that first returns end
	closed bool   // the reader has left
}

func newPipe() *pipe {
	p := &pipe{}
	p.turn.L = &p.mu
	return p
}

// Read blocks until there is data or the end.
func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.data.Len() == 0 && p.end == nil && !p.closed {
		p.turn.Wait()
	}
	switch {
	case p.closed:
		return 0, http.ErrBodyReadAfterClose
	case p.data.Len() == 0:
		p.last()
		p.last = func() {}
		return 0, p.end
	}
	n, err := p.data.Read(b)
	p.turn.Broadcast()
	return n, err //nolint:wrapcheck // never fails: there is data
}

// Write blocks while the window is full.
func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.data.Len() >= pipeWindow && p.end == nil && !p.closed {
		p.turn.Wait()
	}
	if p.closed || p.end != nil {
		return 0, errStreamClosed
	}
	n, err := p.data.Write(b)
	p.turn.Broadcast()
	return n, err //nolint:wrapcheck // never fails
}

// finish ends the stream with an error, io.EOF for a good end. The first wins;
// its last is run on the reader's goroutine before it sees the end, as net/http
// fills in trailers: until then the response is the reader's alone.
func (p *pipe) finish(err error, last func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end == nil {
		p.end, p.last = err, last
	}
	p.turn.Broadcast()
}

// leave makes writers fail: the reader has gone.
func (p *pipe) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.turn.Broadcast()
}

// streamWriter is the response of a streaming call. Until ready is closed the
// header belongs to the handler, after that a copy of it to the caller.
type streamWriter struct {
	header    http.Header
	pipe      *pipe
	once      sync.Once
	ready     chan struct{}
	status    int
	sent      http.Header
	announced []string // trailers named in the header
}

func (w *streamWriter) Header() http.Header { return w.header }

func (w *streamWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status = status
		w.sent = w.header.Clone()
		for _, names := range w.sent["Trailer"] {
			for name := range strings.SplitSeq(names, ",") {
				w.announced = append(w.announced, http.CanonicalHeaderKey(strings.TrimSpace(name)))
			}
		}
		delete(w.sent, "Trailer") // it becomes Response.Trailer
		// Trailers that are set before the header are none of it: a proxy would send
		// them twice, and a gRPC client that gets details twice drops them.
		maps.DeleteFunc(w.sent, func(name string, _ []string) bool { return strings.HasPrefix(name, http.TrailerPrefix) })
		close(w.ready)
	})
}

func (w *streamWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pipe.Write(b)
}

// Flush sends the header; data is on its way already.
func (w *streamWriter) Flush() { w.WriteHeader(http.StatusOK) }

// trailers collects what net/http would send as trailers: keys announced in the
// header, and keys with the prefix.
func (w *streamWriter) trailers(into http.Header) {
	for _, name := range w.announced {
		into[name] = w.header[name]
	}
	for name, values := range w.header {
		if bare, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			into[http.CanonicalHeaderKey(bare)] = values
		}
	}
}

// roundTripStream runs the handler on a goroutine of its own and returns as soon
// as the header is there, as a network transport does.
func roundTripStream(h http.Handler, r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	w := &streamWriter{header: make(http.Header), pipe: newPipe(), ready: make(chan struct{})}
	trailer := make(http.Header)
	in := incoming(ctx, r)
	// The caller's end wakes everybody who waits at the pipe.
	stop := context.AfterFunc(r.Context(), func() { w.pipe.finish(r.Context().Err(), func() {}) })
	go func() {
		defer cancel()
		defer stop()
		end := io.EOF
		defer func() {
			if p := recover(); p != nil {
				// Only http.ErrAbortHandler gets here: the stream is cut off.
				end = io.ErrUnexpectedEOF
			}
			w.WriteHeader(http.StatusOK)
			_ = in.Body.Close()
			w.pipe.finish(end, func() { w.trailers(trailer) })
		}()
		h.ServeHTTP(w, in)
	}()
	select {
	case <-w.ready:
	case <-ctx.Done():
		select {
		case <-w.ready: // it was the handler's end that canceled
		default:
			cancel()
			return nil, r.Context().Err() //nolint:wrapcheck // as a transport returns it
		}
	}
	res := response(r, w.status, w.sent, &streamBody{pipe: w.pipe, cancel: cancel}, -1)
	for _, name := range w.announced {
		trailer[name] = nil
	}
	res.Trailer = trailer
	return res, nil
}

// streamBody is the caller's end of a stream; closing it cancels the handler.
type streamBody struct {
	*pipe
	cancel context.CancelFunc
}

func (b *streamBody) Close() error {
	b.leave()
	b.cancel()
	return nil
}
