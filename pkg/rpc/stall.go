package rpc

import (
	"net/http"
	"time"
)

// Unstalled bounds each write of a response: one whose reader takes nothing of it for
// so long is broken off. A deadline of the context does not do that, for a write that
// waits for its reader hears of none; and a reader that keeps its connection and reads
// nothing more would hold a stream for good. Between two writes the stream may be as
// silent as it wants.
//
// Where a writer has no deadlines (in process, in tests) nothing is bounded: there is
// no slow reader either, but somebody who bounds their own.
func Unstalled(w http.ResponseWriter, stall time.Duration) http.ResponseWriter {
	return &stallWriter{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
}

// stallWriter gives each write its time and lifts that again.
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

// FlushError sends what was written; http.ResponseController asks for it.
func (w *stallWriter) FlushError() error {
	w.bound(time.Now().Add(w.stall))
	defer w.bound(time.Time{})
	return w.control.Flush() //nolint:wrapcheck // as above
}

// Flush is FlushError for those who ask for an http.Flusher.
func (w *stallWriter) Flush() { _ = w.FlushError() } // the next write says so

// Unwrap lets http.ResponseController through.
func (w *stallWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *stallWriter) bound(until time.Time) { _ = w.control.SetWriteDeadline(until) }
