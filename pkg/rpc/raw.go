package rpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/anypb"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// protocolVersion is Connect's.
var protocolVersion = []string{"1"}

// RawClient calls one unary procedure with messages that are encoded already:
// the gateway passes on what it does not read. It is safe for concurrent use.
type RawClient struct {
	http        connect.HTTPClient
	contentType []string
	// template is the request without what differs from call to call. Its URL and the
	// values of its headers are shared by all: whoever wants others makes its own.
	template *http.Request
	invalid  error
}

// NewRawClient makes a client of "/parley.user.v1.UserService/GetUser" whose
// messages are "proto" or "json". A bad URL or codec shows as an error of Call.
func NewRawClient(b Backend, procedure, codec string) *RawClient {
	c := &RawClient{http: b.HTTP, contentType: []string{"application/" + codec}}
	if codec != "proto" && codec != "json" {
		c.invalid = fmt.Errorf("raw client: unknown codec %q", codec)
	}
	u, err := url.Parse(b.URL + procedure)
	if err != nil {
		c.invalid = fmt.Errorf("raw client: %w", err)
		return c
	}
	c.template = &http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host,
		Proto: "HTTP/2.0", ProtoMajor: 2, Body: http.NoBody,
	}
	return c
}

// Call sends one message and returns the answer. The header is added to the
// request and not changed; the deadline of ctx goes along. The error is a
// *connect.Error with the callee's details and always has a reason (InfoOf).
func (c *RawClient) Call(ctx context.Context, header http.Header, body []byte) ([]byte, error) {
	if c.invalid != nil {
		return nil, Error(connect.CodeInternal, errorv1.Reason_REASON_INTERNAL, "%w", c.invalid)
	}
	res, err := c.http.Do(c.request(ctx, header, body))
	if err != nil {
		return nil, transportError(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := readAnswer(res)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, parseError(res.StatusCode, answer)
	}
	return answer, nil
}

func (c *RawClient) request(ctx context.Context, header http.Header, body []byte) *http.Request {
	h := make(http.Header, len(header)+3)
	maps.Copy(h, header)
	h["Content-Type"] = c.contentType
	h["Connect-Protocol-Version"] = protocolVersion
	if deadline, ok := ctx.Deadline(); ok {
		left := max(time.Until(deadline).Milliseconds(), 0)
		h["Connect-Timeout-Ms"] = []string{strconv.FormatInt(left, 10)}
	}
	r := c.template.WithContext(ctx)
	r.Header, r.ContentLength = h, int64(len(body))
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return r
}

func readAnswer(res *http.Response) ([]byte, error) {
	if res.ContentLength > maxAnswer {
		return nil, errTooLarge()
	}
	if res.ContentLength >= 0 {
		answer := make([]byte, res.ContentLength)
		if _, err := io.ReadFull(res.Body, answer); err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		return answer, nil
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return nil, errTooLarge()
	}
	return answer, nil
}

func errTooLarge() *connect.Error {
	return Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_TOO_LARGE, "the answer is larger than %d bytes", maxAnswer)
}

// transportError codes what went wrong on the way. Its text may name addresses
// of ours, so the wire gets the fixed ones.
func transportError(ctx context.Context, err error) *connect.Error {
	var coded *connect.Error
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return errDeadline()
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(err, context.Canceled):
		return errCanceled()
	case errors.As(err, &coded) && coded.Code() == connect.CodeResourceExhausted:
		return coded
	default:
		return errUnavailable()
	}
}

// ParseError reads the body of a unary Connect answer that is an error, with its
// details.
func ParseError(status int, body []byte) *connect.Error { return parseError(status, body) }

func parseError(status int, body []byte) *connect.Error {
	var wire wireError
	if err := json.Unmarshal(body, &wire); err != nil || !isCode(wire.Code) {
		code := codeOfStatus(status)
		return Error(code, reasonOfCode(code), "the service answered HTTP status %d", status)
	}
	out := connect.NewWireError(wire.Code, errors.New(wire.Message))
	for _, d := range wire.Details {
		value, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil {
			// The protocol lets a sender pad.
			if value, err = base64.StdEncoding.DecodeString(d.Value); err != nil {
				continue
			}
		}
		detail, err := connect.NewErrorDetail(&anypb.Any{TypeUrl: "type.googleapis.com/" + d.Type, Value: value})
		if err == nil {
			out.AddDetail(detail)
		}
	}
	return out
}

// isCode says whether a code is one of Connect's. Its parser takes "code_0" and
// "code_99" as well.
func isCode(code connect.Code) bool {
	return code >= connect.CodeCanceled && code <= connect.CodeUnauthenticated
}

// codeOfStatus is the table of the Connect protocol for answers that are not its
// own (https://connectrpc.com/docs/protocol#http-to-error-code).
func codeOfStatus(status int) connect.Code {
	switch status {
	case http.StatusBadRequest:
		return connect.CodeInternal
	case http.StatusUnauthorized:
		return connect.CodeUnauthenticated
	case http.StatusForbidden:
		return connect.CodePermissionDenied
	case http.StatusNotFound:
		return connect.CodeUnimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return connect.CodeUnavailable
	default:
		return connect.CodeUnknown
	}
}
