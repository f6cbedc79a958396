package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// internalHeaders never come from outside: they say who called, over which way,
// and in which trace, and we alone say that.
var internalHeaders = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix",
	"X-Real-Ip", "True-Client-Ip", "Via", "Traceparent", "Tracestate", "Baggage", "Cookie",
	// No service upgrades anything, and the HTTP/2 transport refuses to ask.
	"Connection", "Upgrade",
}

// internalPrefix begins further headers of ours.
const internalPrefix = "Parley-"

// forward proxies a call to its service. It passes Connect, gRPC and gRPC-Web,
// streams included, without reading them.
func (g *Gateway) forward(w *answer, r *http.Request, route *route) {
	began := time.Now()
	ctx, span := g.tracer.Start(r.Context(), strings.TrimPrefix(route.Procedure, "/"),
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer), ofHTTPCall)
	defer span.End()
	if route.Streaming == connect.StreamTypeUnary {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, g.cfg.HTTP.CallTimeout)
		defer cancel()
		defer g.boundCall(w)()
		if r.ContentLength > g.cfg.HTTP.MaxRequestBytes {
			g.reject(w, r, errRequestTooLarge(g.cfg.HTTP.MaxRequestBytes))
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = http.MaxBytesReader(w.ResponseWriter, r.Body, g.cfg.HTTP.MaxRequestBytes)
		}
	} else {
		// A stream lasts as long as both sides want; only its beginning was bounded, and
		// each write is.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		w.ResponseWriter = g.unstalled(w.ResponseWriter)
	}
	whole := false // an answer that is cut off ends in a panic of the proxy
	defer func() {
		code := w.code()
		switch {
		case !whole && w.first.IsZero():
			code = connect.CodeInternal.String()
		case !whole:
			code = brokenOff(ctx)
		}
		if !fine(code) {
			span.SetStatus(codes.Error, code)
		}
		g.metrics.called(ctx, route.Procedure, "http", code, w.took(began, route))
	}()
	route.proxy.ServeHTTP(w, r.WithContext(ctx))
	whole = true
}

func errRequestTooLarge(limit int64) *connect.Error {
	return rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_TOO_LARGE,
		"the request is larger than %d bytes", limit)
}

// proxyTo makes the proxy to one service.
func (g *Gateway) proxyTo(backend rpc.Backend) *httputil.ReverseProxy {
	target, err := url.Parse(backend.URL)
	if err != nil {
		// The dialer made it; a bad one fails each call as unavailable.
		g.log.Error("address of a service", "error", err)
		target = &url.URL{}
	}
	return &httputil.ReverseProxy{
		Transport:      backend.Transport,
		BufferPool:     proxyBuffers{},
		ErrorHandler:   g.proxyFailed,
		ModifyResponse: g.doubt,
		// Each stream that its client ends is logged by the proxy as an error.
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			for _, name := range internalHeaders {
				p.Out.Header.Del(name)
			}
			for name := range p.Out.Header {
				if strings.HasPrefix(name, internalPrefix) {
					p.Out.Header.Del(name)
				}
			}
			if address := g.admission.addressOf(p.In); address.IsValid() {
				p.Out.Header.Set("X-Forwarded-For", address.String())
			}
			p.Out.Header.Set("X-Forwarded-Host", p.In.Host)
			g.propagator.Inject(p.Out.Context(), propagation.HeaderCarrier(p.Out.Header))
		},
	}
}

// proxyFailed answers when the service did not.
func (g *Gateway) proxyFailed(w http.ResponseWriter, r *http.Request, err error) {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errDisputed):
		err = errDoubtful()
	case errors.As(err, &tooLarge):
		err = errRequestTooLarge(tooLarge.Limit)
	case errors.Is(r.Context().Err(), context.DeadlineExceeded):
		err = rpc.Error(connect.CodeDeadlineExceeded, errorv1.Reason_REASON_DEADLINE_EXCEEDED, "the call took too long")
	case errors.Is(r.Context().Err(), context.Canceled):
		err = rpc.Error(connect.CodeCanceled, errorv1.Reason_REASON_CANCELED, "the caller went away")
	default:
		g.log.WarnContext(r.Context(), "service not reached", "path", r.URL.Path, "error", err)
		err = rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
			"the service cannot be reached"), time.Second)
	}
	g.reject(w, r, err)
}

// proxyBuffers lends the proxy its copy buffers.
type proxyBuffers struct{}

const proxyBufferSize = 16 << 10

var proxyBufferPool = sync.Pool{New: func() any { return new([proxyBufferSize]byte) }}

func (proxyBuffers) Get() []byte {
	buffer, _ := proxyBufferPool.Get().(*[proxyBufferSize]byte)
	return buffer[:]
}

func (proxyBuffers) Put(buffer []byte) {
	if len(buffer) == proxyBufferSize {
		proxyBufferPool.Put((*[proxyBufferSize]byte)(buffer))
	}
}
