package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgconn"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// firstDomainReason is where the reasons of the domains begin (error.proto).
const firstDomainReason = 100

// The texts that stand for causes which are nobody's business outside.
func errInternal() *connect.Error {
	return Error(connect.CodeInternal, errorv1.Reason_REASON_INTERNAL, "internal error")
}

func errUnavailable() *connect.Error {
	return WithRetryAfter(Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"temporarily unavailable, try again"), time.Second)
}

func errDeadline() *connect.Error {
	return Error(connect.CodeDeadlineExceeded, errorv1.Reason_REASON_DEADLINE_EXCEEDED, "the call ran past its deadline")
}

func errCanceled() *connect.Error {
	return Error(connect.CodeCanceled, errorv1.Reason_REASON_CANCELED, "the caller went away")
}

// coded gives every error that leaves a handler a code, a reason and a text that
// may be seen. What was not meant for the caller is logged here, once, and
// nowhere else.
func (s *Server) coded(ctx context.Context, procedure string, err error) *connect.Error {
	if panicked, ok := errors.AsType[*panicError](err); ok {
		s.log.ErrorContext(ctx, "panic in a handler",
			"procedure", procedure, "panic", panicked.Error(), "stack", stackOf(panicked.stack))
		return errInternal()
	}
	var own *connect.Error
	isCoded := errors.As(err, &own) && own != nil
	if isCoded && !connect.IsWireError(own) && (infoOf(own) != nil || connect.IsNotModifiedError(own)) {
		return own // made by Error, for this caller
	}
	if ended := contextEnded(ctx, err); ended != nil {
		return ended
	}
	if isCoded {
		return s.foreign(ctx, procedure, err, own)
	}
	if isUnstorable(err) {
		return Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT,
			"a text or a time in the request cannot be stored")
	}
	if isUnavailable(err) {
		s.log.WarnContext(ctx, "a dependency is away", "procedure", procedure, "error", err)
		return errUnavailable()
	}
	s.log.ErrorContext(ctx, "internal error", "procedure", procedure, "error", err)
	return errInternal()
}

// contextEnded maps what happens when the call's time is over: whatever error
// comes out then, that is its reason.
func contextEnded(ctx context.Context, err error) *connect.Error {
	switch {
	case errors.Is(context.Cause(ctx), errForced):
		return errDrained()
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errDeadline()
	case errors.Is(ctx.Err(), context.Canceled):
		return errCanceled()
	case errors.Is(err, context.DeadlineExceeded):
		// A shorter deadline of the handler's own: a dependency was too slow.
		return errDeadline()
	default:
		return nil
	}
}

// foreign handles coded errors that Error did not make: the answer of another
// service that a handler passed on, an error of the client library, or one of
// connect's own.
func (s *Server) foreign(ctx context.Context, procedure string, err error, own *connect.Error) *connect.Error {
	reason := ReasonOf(own)
	if connect.IsWireError(own) {
		if reason >= firstDomainReason || passesOn(reason) {
			return withInfo(own.Code(), errors.New(own.Message()), InfoOf(own))
		}
	} else if isOurVerdict(own.Code()) {
		return withDetailsOf(own)
	}
	switch own.Code() {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeAborted:
		s.log.WarnContext(ctx, "a dependency is away", "procedure", procedure, "error", err)
		return errUnavailable()
	default:
		// Another service refused our token or our request: our fault, not the
		// caller's.
		s.log.ErrorContext(ctx, "internal error", "procedure", procedure, "error", err)
		return errInternal()
	}
}

// passesOn says which general answers of a callee also hold for our caller.
func passesOn(reason errorv1.Reason) bool {
	switch reason {
	case errorv1.Reason_REASON_RATE_LIMITED, errorv1.Reason_REASON_OVERLOADED,
		errorv1.Reason_REASON_VERSION_CONFLICT, errorv1.Reason_REASON_PAGE_TOKEN_INVALID:
		return true
	default:
		return false
	}
}

// isOurVerdict says whether a code without a reason, made in this process, tells
// the caller about its own request.
func isOurVerdict(code connect.Code) bool {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
		connect.CodeFailedPrecondition, connect.CodeOutOfRange, connect.CodeUnimplemented,
		connect.CodeUnauthenticated, connect.CodeResourceExhausted:
		return true
	default:
		return false
	}
}

// withDetailsOf adds the reason that the code stands for and keeps the other
// details (the violations of a validation).
func withDetailsOf(own *connect.Error) *connect.Error {
	return edit(own, func(*errorv1.ErrorInfo) {})
}

// isUnstorable says whether PostgreSQL refused a value for what it is: a text with
// a zero byte, which protobuf allows and no column takes, or a time beyond its
// calendar. Both come from the request.
func isUnstorable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains([]string{"22021", "22P05", "22008"}, pg.Code)
}

// isUnavailable tells outages from faults: the database or the network is away,
// restarting or overloaded, and the same call may work in a moment.
func isUnavailable(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// 08 connection, 53 resources, 57P operator intervention, 57014 canceled by
		// a timeout, 55P03 lock timeout, 40001 serialization, 40P01 deadlock, 25P03
		// idle transaction ended.
		for _, class := range []string{"08", "53", "57", "55P03", "40001", "40P01", "25P03"} {
			if strings.HasPrefix(pg.Code, class) {
				return true
			}
		}
		return false
	}
	var connecting *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connecting) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)
}
