package rpc

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// completing is the response of a call. Connect answers some unary calls before
// any interceptor has run (a message that cannot be decoded, one too large, a
// timeout header that is no number); the reason is added to those errors here,
// so that every unary Connect error has one. gRPC and streams are passed
// through: there such an error means what its code says.
type completing struct {
	http.ResponseWriter
	started bool
	status  int    // of the error that is held back; 0: pass through
	body    []byte // what was written of it
}

// WriteHeader holds back the errors of unary Connect calls.
func (c *completing) WriteHeader(status int) {
	c.started = true
	if status >= http.StatusBadRequest && c.Header().Get("Content-Type") == "application/json" {
		c.status = status
		return
	}
	c.ResponseWriter.WriteHeader(status)
}

// Write keeps the body of an error that is held back.
func (c *completing) Write(p []byte) (int, error) {
	c.started = true
	if c.status != 0 {
		c.body = append(c.body, p...)
		return len(p), nil
	}
	return c.ResponseWriter.Write(p) //nolint:wrapcheck // a writer among writers
}

// Flush sends what was written, for streams.
func (c *completing) Flush() {
	if f, ok := c.ResponseWriter.(http.Flusher); ok && c.status == 0 {
		c.started = true
		f.Flush()
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (c *completing) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// finish sends the error that was held back.
func (c *completing) finish() {
	if c.status == 0 {
		return
	}
	if with, ok := addReason(c.body); ok {
		c.body = with
	}
	// connect-go compresses no errors and sets no length; another handler's length
	// would be wrong now.
	c.Header().Del("Content-Length")
	c.ResponseWriter.WriteHeader(c.status)
	// The connection is gone if this fails; there is nobody left to tell.
	_, _ = c.ResponseWriter.Write(c.body)
}

// wireError is the JSON form of a Connect error
// (https://connectrpc.com/docs/protocol#error-end-stream).
type wireError struct {
	Code    connect.Code `json:"code"`
	Message string       `json:"message,omitempty"`
	Details []wireDetail `json:"details,omitempty"`
}

type wireDetail struct {
	Type  string          `json:"type"`
	Value string          `json:"value"`
	Debug json.RawMessage `json:"debug,omitempty"`
}

// maxMessage is how many bytes of a library's own message go out.
const maxMessage = 512

// addReason adds an ErrorInfo to an error that has none; false if it has one,
// or if it is no Connect error.
func addReason(body []byte) ([]byte, bool) {
	var wire wireError
	if json.Unmarshal(body, &wire) != nil || !isCode(wire.Code) {
		return nil, false
	}
	for _, d := range wire.Details {
		if d.Type == infoName {
			return nil, false
		}
	}
	value, err := proto.Marshal(&errorv1.ErrorInfo{Reason: reasonOfCode(wire.Code)})
	if err != nil {
		return nil, false
	}
	// The decoder quotes what it could not read, which may be the whole request.
	if len(wire.Message) > maxMessage {
		wire.Message = strings.ToValidUTF8(wire.Message[:maxMessage], "") + "…"
	}
	wire.Details = append(wire.Details, wireDetail{Type: infoName, Value: base64.RawStdEncoding.EncodeToString(value)})
	out, err := json.Marshal(wire)
	if err != nil {
		return nil, false
	}
	return out, true
}
