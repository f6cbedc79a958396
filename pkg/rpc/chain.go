package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
)

// slowCall is the time from which a call is worth a line in the log.
const slowCall = time.Second

// chain is our one interceptor: log, deadline, recover and errors, in that order
// from the outside. One instead of four, because each costs a closure per call.
type chain struct{ server *Server }

var _ connect.Interceptor = (*chain)(nil)

// WrapUnary gives every call a deadline and every error a code and a reason.
func (c *chain) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		start := time.Now()
		ctx, cancel := c.server.deadline(ctx)
		defer cancel()
		res, err := c.unary(ctx, next, req)
		if err != nil {
			// The typed nil that a handler may return beside its error goes no further.
			res, err = nil, c.server.coded(ctx, req.Spec().Procedure, err)
		}
		c.server.logCall(ctx, req.Spec().Procedure, start, err)
		return res, err
	}
}

func (c *chain) unary(ctx context.Context, next connect.UnaryFunc, req connect.AnyRequest) (res connect.AnyResponse, err error) {
	defer catch(&err)
	return next(ctx, req)
}

// WrapStreamingHandler does the same for streams, except that they have no
// deadline but the one that the caller names.
func (c *chain) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		start := time.Now()
		err := c.stream(ctx, next, conn)
		if err != nil {
			err = c.server.coded(ctx, conn.Spec().Procedure, err)
		}
		c.server.logCall(ctx, conn.Spec().Procedure, start, err)
		return err
	}
}

func (c *chain) stream(ctx context.Context, next connect.StreamingHandlerFunc, conn connect.StreamingHandlerConn) (err error) {
	defer catch(&err)
	return next(ctx, conn)
}

// WrapStreamingClient leaves clients alone.
func (c *chain) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// panicError is a panic on its way to the log.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// catch turns a panic into an error, except the one by which net/http is told to
// drop a connection.
func catch(err *error) {
	switch r := recover(); {
	case r == nil:
	case isAbort(r):
		panic(r) //nolint:forbidigo // not ours: net/http ends the connection with it
	default:
		*err = &panicError{value: r, stack: debug.Stack()}
	}
}

func isAbort(r any) bool {
	err, ok := r.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}

// deadline caps the caller's deadline, or sets ours if it named none.
func (s *Server) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := s.cfg.DefaultTimeout
	if d, ok := ctx.Deadline(); ok {
		limit = s.cfg.MaxTimeout
		if time.Until(d) <= limit {
			return ctx, func() {} // a second timer would only cost
		}
	}
	return context.WithTimeout(ctx, limit)
}

func (s *Server) logCall(ctx context.Context, procedure string, start time.Time, err error) {
	took := time.Since(start)
	level := slog.LevelDebug
	if took >= slowCall {
		level = slog.LevelWarn
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("procedure", procedure), slog.Duration("took", took)}
	if err != nil {
		attrs = append(attrs, slog.String("code", CodeOf(err).String()), slog.String("reason", ReasonOf(err).String()))
	}
	s.log.LogAttrs(ctx, level, "call", attrs...)
}

// recoverHTTP is the net below the chain: a panic in a codec, in plain HTTP or in
// the chain itself ends one request and not the process.
func (s *Server) recoverHTTP(w *completing, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if isAbort(p) {
		panic(p) //nolint:forbidigo // not ours: net/http ends the connection with it
	}
	s.log.ErrorContext(r.Context(), "panic outside of a handler",
		"path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if !w.started {
		s.writeError(w, r, errInternal())
		return
	}
	// Half an answer is out: only a broken stream tells the caller so.
	panic(http.ErrAbortHandler) //nolint:forbidigo // the documented way to abort a response
}

// stackOf shortens a stack for the log: the first frames are ours.
func stackOf(stack []byte) string {
	const most = 8 << 10
	if len(stack) > most {
		stack = append(bytes.Clone(stack[:most]), "…"...)
	}
	return string(stack)
}
