package gateway

import (
	"net/http"
	"time"
)

// stallWrites times the longest write of a socket is how long a client may take
// nothing of a stream: a download over a bad network stands still for longer.
const stallWrites = 6

// unstalled bounds each write of a stream. A client that reads nothing more, and
// keeps its connection, would hold the stream and a place at the service for good.
func (g *Gateway) unstalled(w http.ResponseWriter) http.ResponseWriter {
	return &stallWriter{ResponseWriter: w, control: http.NewResponseController(w), stall: stallWrites * g.cfg.Socket.WriteTimeout}
}

// stallWriter gives each write its time and lifts that again: between two writes a
// stream may be as silent as it wants.
type stallWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (w *stallWriter) Write(p []byte) (int, error) {
	w.bound(time.Now().Add(w.stall))
	defer w.bound(time.Time{})
	return w.ResponseWriter.Write(p) //nolint:wrapcheck // a writer among writers
}

// FlushError sends what was written.
func (w *stallWriter) FlushError() error {
	w.bound(time.Now().Add(w.stall))
	defer w.bound(time.Time{})
	return w.control.Flush() //nolint:wrapcheck // as above
}

// Unwrap lets http.ResponseController through.
func (w *stallWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// bound does nothing where there are no deadlines (in process, in tests): there are
// no slow clients either.
func (w *stallWriter) bound(until time.Time) { _ = w.control.SetWriteDeadline(until) }
