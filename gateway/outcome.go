package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
)

// answer sees how a call over HTTP ends, for the metric, without changing what it
// passes on. Only Connect's unary calls tell it by their status: gRPC does in a
// trailer, gRPC-Web and Connect's streams in their last frame.
type answer struct {
	http.ResponseWriter

	status int
	first  time.Time // when the answer began; zero: it has not
	last   lastFrame
}

// unseen is the code of an answer that ended without telling one.
const unseen = "unseen"

func (a *answer) begin(status int) {
	if !a.first.IsZero() {
		return
	}
	a.status, a.first = status, time.Now()
	a.last.mark = markOf(a.Header().Get("Content-Type"))
}

func (a *answer) WriteHeader(status int) {
	if status >= http.StatusOK { // others announce an answer
		a.begin(status)
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begin(http.StatusOK)
	a.last.see(p)
	return a.ResponseWriter.Write(p) //nolint:wrapcheck // it stands for the other
}

// Unwrap lets http.ResponseController through.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// code is the name or number under which the call is counted.
func (a *answer) code() string {
	kind := a.Header().Get("Content-Type")
	switch {
	case a.status != http.StatusOK:
		return strconv.Itoa(a.status)
	case strings.HasPrefix(kind, "application/grpc"):
		return a.grpcCode()
	case strings.HasPrefix(kind, "application/connect+"):
		return connectCode(a.last.text(a.Header().Get("Connect-Content-Encoding")))
	default:
		return strconv.Itoa(a.status)
	}
}

// grpcCode looks where gRPC's status can be: in a header if the answer is nothing
// else, in a trailer, announced or not, and for gRPC-Web in the last frame.
func (a *answer) grpcCode() string {
	status := a.Header().Get("Grpc-Status")
	if status == "" {
		status = a.Header().Get(http.TrailerPrefix + "Grpc-Status")
	}
	if status == "" {
		for line := range strings.SplitSeq(string(a.last.text(a.Header().Get("Grpc-Encoding"))), "\n") {
			name, value, _ := strings.Cut(line, ":")
			if strings.EqualFold(strings.TrimSpace(name), "grpc-status") {
				status = strings.TrimSpace(value)
			}
		}
	}
	code, err := strconv.ParseUint(status, 10, 8)
	switch {
	case err != nil:
		return unseen
	case code == 0:
		return "ok"
	default:
		return knownCode(connect.Code(code))
	}
}

// connectCode reads the frame that ends a stream.
func connectCode(frame []byte) string {
	var end struct {
		Error *struct {
			Code connect.Code `json:"code"`
		} `json:"error"`
	}
	switch {
	case frame == nil || json.Unmarshal(frame, &end) != nil:
		return unseen
	case end.Error == nil:
		return "ok"
	default:
		return knownCode(end.Error.Code)
	}
}

// knownCode keeps the label's values few.
func knownCode(code connect.Code) string {
	if code < connect.CodeCanceled || code > connect.CodeUnauthenticated {
		return connect.CodeUnknown.String()
	}
	return code.String()
}

// fine tells whether a call that is counted under the code has succeeded.
func fine(code string) bool { return code == "ok" || len(code) == 3 && code < "400" }

// took is how long the call took: of a stream until it began to answer, because how
// long it lives says nothing about anybody's waiting.
func (a *answer) took(began time.Time, route *route) time.Duration {
	if route.Streaming != connect.StreamTypeUnary && !a.first.IsZero() {
		return a.first.Sub(began)
	}
	return time.Since(began)
}

// brokenOff is the code of an answer that was cut: by the caller, by the time for
// it, or by the service.
func brokenOff(ctx context.Context) string {
	switch err := ctx.Err(); {
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled.String()
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded.String()
	default:
		return connect.CodeUnavailable.String()
	}
}

// The marks of frames.
const (
	frameHead       = 5 // a byte of marks, four of length
	compressedFrame = 1 << 0
	endOfStream     = 1 << 1 // Connect's
	trailersOfWeb   = 1 << 7 // gRPC-Web's
	// mostOfLastFrame is what is kept of a last frame: a code, a message and details.
	mostOfLastFrame = 16 << 10
)

// markOf is what marks the last frame of an answer of that type; zero for one
// without frames, or whose end stands elsewhere.
func markOf(contentType string) byte {
	switch {
	case strings.HasPrefix(contentType, "application/grpc-web"):
		return trailersOfWeb
	case strings.HasPrefix(contentType, "application/connect+"):
		return endOfStream
	default:
		return 0
	}
}

// lastFrame follows the frames of an answer as they pass by in pieces, and keeps
// the last one.
type lastFrame struct {
	mark byte

	head [frameHead]byte
	have int    // of head
	left uint32 // of the frame's body
	is   bool   // this is the last
	body []byte
}

func (f *lastFrame) see(p []byte) {
	for f.mark != 0 && len(p) > 0 {
		if f.left > 0 {
			n := min(len(p), int(f.left))
			if f.is {
				f.body = append(f.body, p[:min(n, mostOfLastFrame-len(f.body))]...)
			}
			f.left -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(f.head[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have == frameHead {
			f.have = 0
			f.left = binary.BigEndian.Uint32(f.head[1:])
			f.is, f.body = f.head[0]&f.mark != 0, nil
		}
	}
}

// text is the body of the last frame, unpacked; nil if there was none or it cannot
// be read.
func (f *lastFrame) text(encoding string) []byte {
	if !f.is || f.left > 0 {
		return nil
	}
	if f.head[0]&compressedFrame == 0 {
		return append([]byte{}, f.body...)
	}
	if encoding != "gzip" {
		return nil
	}
	packed, err := gzip.NewReader(bytes.NewReader(f.body))
	if err != nil {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(packed, mostOfLastFrame))
	if err != nil {
		return nil
	}
	return text
}
