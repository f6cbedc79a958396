package rpc

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"

	"github.com/parleychat/parley/pkg/token"
)

const (
	// defaultCallTimeout is the deadline of a call to another service whose
	// context has none.
	defaultCallTimeout = 5 * time.Second
	// maxAnswer bounds an answer, in bytes.
	maxAnswer = 8 << 20
)

// ClientOptions are for the New…Client functions of services that call others:
// they add the caller's service token, the trace and a deadline. The token of
// the person behind a call is not forwarded: a service speaks for itself. A nil
// signer calls anonymously; a header that the caller set stays.
func ClientOptions(signer *token.ServiceSigner, audience string) []connect.ClientOption {
	interceptors := []connect.Interceptor{&outgoing{signer: signer, audience: audience}}
	// Fails only if instruments cannot be made; calls work without them.
	if tracing, err := otelconnect.NewInterceptor(); err == nil {
		interceptors = append([]connect.Interceptor{tracing}, interceptors...)
	}
	return []connect.ClientOption{
		connect.WithInterceptors(interceptors...),
		connect.WithReadMaxBytes(maxAnswer),
		// Inside one network gzip costs more than it saves.
		connect.WithAcceptCompression("gzip", nil, nil),
	}
}

type outgoing struct {
	signer   *token.ServiceSigner
	audience string
}

func (o *outgoing) authorize(header interface {
	Get(key string) string
	Set(key, value string)
},
) error {
	if o.signer == nil || header.Get("Authorization") != "" {
		return nil
	}
	raw, err := o.signer.Token(o.audience)
	if err != nil {
		return fmt.Errorf("call %s: %w", o.audience, err)
	}
	header.Set("Authorization", "Bearer "+raw)
	return nil
}

// WrapUnary adds what a call needs.
func (o *outgoing) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := o.authorize(req.Header()); err != nil {
			return nil, err
		}
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, defaultCallTimeout)
			defer cancel()
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient adds the token; a stream lives as long as its context.
func (o *outgoing) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		if err := o.authorize(conn.RequestHeader()); err != nil {
			return &brokenStream{StreamingClientConn: conn, err: err}
		}
		return conn
	}
}

// WrapStreamingHandler leaves servers alone.
func (o *outgoing) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// brokenStream sends nothing: a call without its token would only be refused.
type brokenStream struct {
	connect.StreamingClientConn
	err error
}

func (b *brokenStream) Send(any) error    { return b.err }
func (b *brokenStream) Receive(any) error { return b.err }
