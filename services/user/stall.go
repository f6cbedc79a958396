package user

import (
	"fmt"
	"net/http"
	"time"
)

// unstalled breaks a response off whose reader takes nothing of it for so long. A
// deadline of the context does not: a write that waits for its reader hears of none.
// In one process there is no such deadline, nor a reader other than the gateway,
// which has the same one for its own clients and leaves then.
func unstalled(h http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&stallWriter{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}, r)
	})
}

// stallWriter gives each write its time, and lifts that again: between two writes
// the service works.
type stallWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (w *stallWriter) Write(p []byte) (int, error) {
	w.bound()
	defer w.lift()
	n, err := w.ResponseWriter.Write(p)
	if err != nil {
		return n, fmt.Errorf("write to the reader: %w", err)
	}
	return n, nil
}

// Flush sends what was written.
func (w *stallWriter) Flush() {
	w.bound()
	defer w.lift()
	_ = w.control.Flush() // the next write says so
}

// Unwrap lets http.ResponseController through.
func (w *stallWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// bound and lift do nothing where there are no deadlines.
func (w *stallWriter) bound() { _ = w.control.SetWriteDeadline(time.Now().Add(w.stall)) } //nolint:forbidigo // of the connection
func (w *stallWriter) lift()  { _ = w.control.SetWriteDeadline(time.Time{}) }
