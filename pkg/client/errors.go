package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// CloseUnauthentic is the close code of a token that is missing, wrong or
// revoked; the reason says which.
const CloseUnauthentic = 4401

// maxAdvice is the longest that a server may keep a client away; gateways ask for
// a minute at most.
const maxAdvice = 10 * time.Minute

// CloseError says that the server closed the connection, and what it advised.
type CloseError struct {
	// Code is the WebSocket close code; docs/protocol.md lists them.
	Code int
	// Reason is the text beside it.
	Reason string
	// ReconnectAfter is how long to wait before the next try, ten minutes at most; 0
	// without advice.
	ReconnectAfter time.Duration
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("closed by the server with code %d %s", e.Code, e.Reason)
}

// closeError reads the advice out of a close frame.
func closeError(err error) error {
	var closed *websocket.CloseError
	if !errors.As(err, &closed) {
		return fmt.Errorf("read frame: %w", err)
	}
	var advice struct {
		ReconnectMS int64 `json:"reconnect_ms"`
	}
	// A reason that is no JSON carries no advice, and no advice keeps a client away
	// for good.
	if json.Unmarshal([]byte(closed.Text), &advice) != nil {
		advice.ReconnectMS = 0
	}
	after := time.Duration(min(max(advice.ReconnectMS, 0), maxAdvice.Milliseconds())) * time.Millisecond
	return &CloseError{Code: closed.Code, Reason: closed.Text, ReconnectAfter: after}
}

// replyError turns an error frame into what a Connect client over HTTP returns.
func replyError(e *realtimev1.Error) *connect.Error {
	var code connect.Code
	if err := code.UnmarshalText([]byte(e.GetCode())); err != nil || code < connect.CodeCanceled || code > connect.CodeUnauthenticated {
		code = connect.CodeUnknown // the parser takes "code_0" and "code_99" as well
	}
	err := connect.NewError(code, errors.New(e.GetMessage()))
	if e.GetInfo() != nil {
		if detail, derr := connect.NewErrorDetail(e.GetInfo()); derr == nil {
			err.AddDetail(detail)
		}
	}
	for _, d := range e.GetDetails() {
		if detail, derr := connect.NewErrorDetail(d); derr == nil {
			err.AddDetail(detail)
		}
	}
	return err
}

// sessionOver says that no further connect can succeed with this session.
func sessionOver(err error) bool {
	if closed, ok := errors.AsType[*CloseError](err); ok {
		return closed.Code == CloseUnauthentic && closed.Reason == "SESSION_REVOKED"
	}
	switch rpc.ReasonOf(err) {
	case errorv1.Reason_REASON_SESSION_REVOKED, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID, errorv1.Reason_REASON_REFRESH_TOKEN_REUSED:
		return true
	default:
		return false
	}
}

// retryable says that the same request may be tried again: its outcome is open,
// or the server asked for patience.
func retryable(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeDeadlineExceeded, connect.CodeAborted:
		return true
	default:
		return false
	}
}

// retryAfter is the server's advice, within the same bound; 0 without one.
func retryAfter(err error) time.Duration {
	return min(max(rpc.InfoOf(err).GetRetryAfter().AsDuration(), 0), maxAdvice)
}
