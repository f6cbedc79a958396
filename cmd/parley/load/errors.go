package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/gorilla/websocket"
)

// classOf names what broke a connection or a call, without addresses and numbers.
func classOf(err error) string {
	if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
		reason := closed.Text
		if strings.HasPrefix(reason, "{") {
			reason = ""
		}
		return strings.TrimSpace(fmt.Sprintf("close %d %s", closed.Code, reason))
	}
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number.Error()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "connection cut"
	case errors.Is(err, errGone):
		return "connection gone"
	}
	return err.Error()
}

// unknown tells whether an answered error leaves open if the message is stored.
func (f *fault) unknown() bool {
	switch f.Code {
	case "unavailable", "deadline_exceeded", "canceled", "internal", "unknown", "aborted":
		return true
	default:
		return false
	}
}
