package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// infoName is the full name of the detail that carries the reason.
var infoName = string((&errorv1.ErrorInfo{}).ProtoReflect().Descriptor().FullName())

// Error makes an error that a caller may see: class, stable reason and a
// sentence for people. The message goes over the wire as it is, with the text of
// whatever %w wraps, so neither causes of ours nor personal data belong in it.
func Error(code connect.Code, reason errorv1.Reason, format string, args ...any) *connect.Error {
	return withInfo(code, fmt.Errorf(format, args...), &errorv1.ErrorInfo{Reason: reason})
}

// WithRetryAfter says how long to wait before trying again. The error keeps its
// code, message and other details.
func WithRetryAfter(err *connect.Error, d time.Duration) *connect.Error {
	return edit(err, func(info *errorv1.ErrorInfo) { info.RetryAfter = durationpb.New(d) })
}

// WithMetadata adds a fact for the message ("limit", "5"), never personal data.
func WithMetadata(err *connect.Error, key, value string) *connect.Error {
	return edit(err, func(info *errorv1.ErrorInfo) {
		if info.Metadata == nil {
			info.Metadata = make(map[string]string, 1)
		}
		info.Metadata[key] = value
	})
}

// ReasonOf gives the reason of an error. One that carries none (it was made
// below our chain, or by a proxy) gets the reason that its code stands for.
// REASON_UNSPECIFIED for nil.
func ReasonOf(err error) errorv1.Reason {
	if err == nil {
		return errorv1.Reason_REASON_UNSPECIFIED
	}
	return InfoOf(err).GetReason()
}

// InfoOf gives the detail of an error, made up from the code if it carries none.
// It is nil only for a nil error. The result is the caller's to change.
func InfoOf(err error) *errorv1.ErrorInfo {
	if err == nil {
		return nil
	}
	if info := infoOf(err); info != nil {
		return info
	}
	return &errorv1.ErrorInfo{Reason: reasonOfCode(CodeOf(err))}
}

// CodeOf is connect.CodeOf that also knows the context's errors, which a
// transport may return bare.
func CodeOf(err error) connect.Code {
	if coded := (*connect.Error)(nil); errors.As(err, &coded) && coded != nil {
		return coded.Code()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	default:
		return connect.CodeUnknown
	}
}

// infoOf finds the detail that an error carries, or nil.
func infoOf(err error) *errorv1.ErrorInfo {
	var coded *connect.Error
	if !errors.As(err, &coded) || coded == nil {
		return nil
	}
	for _, d := range coded.Details() {
		if d.Type() != infoName {
			continue
		}
		info := &errorv1.ErrorInfo{}
		if proto.Unmarshal(d.Bytes(), info) == nil {
			return info
		}
	}
	return nil
}

// withInfo makes a coded error with its detail.
func withInfo(code connect.Code, cause error, info *errorv1.ErrorInfo) *connect.Error {
	out := connect.NewError(code, cause)
	// Encoding an ErrorInfo cannot fail unless its strings are not UTF-8; then the
	// code alone still tells the class.
	if detail, err := connect.NewErrorDetail(info); err == nil {
		out.AddDetail(detail)
	}
	return out
}

// edit rebuilds an error with a changed detail. Nothing is changed in place, for
// the error may be a shared sentinel; not even Meta is read, which would make
// the map. So headers in Meta are lost.
func edit(err *connect.Error, change func(*errorv1.ErrorInfo)) *connect.Error {
	info := InfoOf(err)
	change(info)
	out := withInfo(err.Code(), err.Unwrap(), info)
	for _, d := range err.Details() {
		if d.Type() != infoName {
			out.AddDetail(d)
		}
	}
	return out
}

// reasonOfCode is the documented meaning of an error that carries no reason.
func reasonOfCode(code connect.Code) errorv1.Reason {
	switch code {
	case connect.CodeCanceled:
		return errorv1.Reason_REASON_CANCELED
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return errorv1.Reason_REASON_INVALID_ARGUMENT
	case connect.CodeDeadlineExceeded:
		return errorv1.Reason_REASON_DEADLINE_EXCEEDED
	case connect.CodePermissionDenied:
		return errorv1.Reason_REASON_ACCESS_DENIED
	case connect.CodeResourceExhausted:
		return errorv1.Reason_REASON_TOO_LARGE
	case connect.CodeUnimplemented:
		return errorv1.Reason_REASON_METHOD_UNKNOWN
	case connect.CodeUnavailable, connect.CodeAborted:
		return errorv1.Reason_REASON_UNAVAILABLE
	case connect.CodeUnauthenticated:
		return errorv1.Reason_REASON_TOKEN_INVALID
	case connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss:
		return errorv1.Reason_REASON_INTERNAL
	default:
		// Not found, already exists, failed precondition: only a domain knows.
		return errorv1.Reason_REASON_UNSPECIFIED
	}
}
