package gateway

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// JWKSPath is where the public keys of access tokens are; auth serves them.
const JWKSPath = "/.well-known/jwks.json"

// procedurePrefix begins the path of every RPC.
const procedurePrefix = "/parley."

// route is one method that may be called from outside.
type route struct {
	rpc.Method
	proxy             *httputil.ReverseProxy
	rawProto, rawJSON *rpc.RawClient // unary only
}

func (r *route) raw(f format) *rpc.RawClient {
	if f.codec() == "json" {
		return r.rawJSON
	}
	return r.rawProto
}

// routes is the route table, made from the access options of the linked
// descriptors and from nothing else.
type routes map[string]*route

func newRoutes(methods map[string]rpc.Method, dialer rpc.Dialer, proxyTo func(rpc.Backend) *httputil.ReverseProxy) routes {
	table := make(routes)
	proxies := make(map[string]*httputil.ReverseProxy)
	for procedure, method := range methods {
		if !method.Public() {
			continue
		}
		backend := dialer.Backend(method.Service)
		if proxies[method.Service] == nil {
			proxies[method.Service] = proxyTo(backend)
		}
		r := &route{Method: method, proxy: proxies[method.Service]}
		if method.Streaming == connect.StreamTypeUnary {
			r.rawProto = rpc.NewRawClient(backend, procedure, "proto")
			r.rawJSON = rpc.NewRawClient(backend, procedure, "json")
		}
		table[procedure] = r
	}
	return table
}

// find gives the route of a procedure. An internal method looks like one that
// does not exist.
func (t routes) find(procedure string) (*route, error) {
	r, ok := t[procedure]
	if !ok {
		return nil, rpc.ErrMethodUnknown()
	}
	return r, nil
}

// unary is find for the socket, which carries no streams.
func (t routes) unary(procedure string) (*route, error) {
	r, err := t.find(procedure)
	if err != nil {
		return nil, err
	}
	if r.Streaming != connect.StreamTypeUnary {
		return nil, rpc.Error(connect.CodeUnimplemented, errorv1.Reason_REASON_METHOD_UNKNOWN,
			"this method streams: call it over HTTP")
	}
	return r, nil
}

// ServeHTTP is the door for everything.
func (g *Gateway) ServeHTTP(plain http.ResponseWriter, r *http.Request) {
	w := &answer{ResponseWriter: plain, status: http.StatusOK}
	defer g.recoverHTTP(w, r)
	g.boundBody(plain, r)
	switch {
	case r.URL.Path == SocketPath:
		g.upgrade(plain, r) // takes the connection
	case g.cors(w, r):
	case strings.HasPrefix(r.URL.Path, procedurePrefix):
		g.serveCall(w, r)
	case r.URL.Path == JWKSPath && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		g.serveKeys(w, r)
	case g.pages != nil:
		g.pages.ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// recoverHTTP makes a panic one failed request and one report. net/http would end
// the connection and tell it where production does not look.
func (g *Gateway) recoverHTTP(w *answer, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p) //nolint:forbidigo // not ours: net/http ends the connection with it
	}
	stack := debug.Stack()
	g.log.ErrorContext(r.Context(), "panic in the gateway",
		"path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(stack[:min(len(stack), mostOfStack)]))
	if r.URL.Path == SocketPath || !w.first.IsZero() {
		// The connection is no longer ours, or half an answer is out: only its end tells.
		panic(http.ErrAbortHandler) //nolint:forbidigo // the documented way to abort a response
	}
	g.reject(w, r, rpc.Error(connect.CodeInternal, errorv1.Reason_REASON_INTERNAL, "internal error"))
}

// mostOfStack is what the log keeps of a stack: the first frames are ours.
const mostOfStack = 8 << 10

// serveCall checks a call from outside and forwards it.
func (g *Gateway) serveCall(w *answer, r *http.Request) {
	route, err := g.admitCall(r)
	if err != nil {
		g.reject(w, r, err)
		return
	}
	if route.Streaming == connect.StreamTypeBidi && r.ProtoMajor < 2 {
		// Through a proxy it would hang until its deadline.
		g.metrics.rejected.Add(r.Context(), 1, g.metrics.with("reason", "bidi_http1"))
		http.Error(w, "bidirectional streams need HTTP/2", http.StatusHTTPVersionNotSupported)
		return
	}
	g.forward(w, r, route)
}

func (g *Gateway) admitCall(r *http.Request) (*route, error) {
	if wait := g.admission.source(g.admission.addressOf(r)).admitCall(); wait > 0 {
		return nil, errRateLimited(wait, "too many requests")
	}
	route, err := g.routes.find(r.URL.Path)
	if err != nil {
		return nil, err
	}
	// Nothing but a person's token is taken from outside, not even where any
	// caller is welcome.
	if token.TypeOf(bearer(r)) == token.TypeService {
		return nil, rpc.TokenError(token.ErrInvalid)
	}
	caller, err := rpc.Authenticate(r.Context(), g.verifier, nil, r.Header)
	if err != nil {
		return nil, err //nolint:wrapcheck // coded
	}
	if err := rpc.Authorize(route.Method, caller); err != nil {
		return nil, err //nolint:wrapcheck // coded
	}
	return route, nil
}

// serveKeys passes the key set of auth through.
func (g *Gateway) serveKeys(w http.ResponseWriter, r *http.Request) {
	if wait := g.admission.source(g.admission.addressOf(r)).admitCall(); wait > 0 {
		g.reject(w, r, errRateLimited(wait, "too many requests"))
		return
	}
	g.keys.ServeHTTP(w, r)
}

// reject answers in the caller's protocol: Connect, gRPC or gRPC-Web.
func (g *Gateway) reject(w http.ResponseWriter, r *http.Request, err error) {
	info := rpc.InfoOf(err)
	g.metrics.reject(r.Context(), info.GetReason())
	if retry := info.GetRetryAfter(); retry != nil {
		seconds := math.Ceil(retry.AsDuration().Seconds())
		w.Header().Set("Retry-After", strconv.FormatFloat(max(seconds, 1), 'f', 0, 64))
	}
	if err := g.errors.Write(w, r, err); err != nil {
		g.log.DebugContext(r.Context(), "error not written", "error", err)
	}
}

// reasonName is the name of a reason without its prefix.
func reasonName(reason errorv1.Reason) string {
	return strings.TrimPrefix(reason.String(), "REASON_")
}

// boundBody bounds the time of a body that nobody will read: net/http waits for the
// rest of one before it answers, for ever, and so a stranger would hold the
// connection. What is forwarded gets a time of its own.
func (g *Gateway) boundBody(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	// A writer without deadlines (in process, in tests) has no slow client either.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.cfg.HTTP.HeaderTimeout))
}

// boundCall bounds what a slow client may take of a unary call.
func (g *Gateway) boundCall(w http.ResponseWriter) (undo func()) {
	control := http.NewResponseController(w)
	until := time.Now().Add(g.cfg.HTTP.CallTimeout)
	// A writer without deadlines (in process, in tests) has no slow client either.
	if control.SetReadDeadline(until) != nil || control.SetWriteDeadline(until) != nil {
		return func() {}
	}
	return func() {
		// The connection is used again; the server sets the deadline of reading.
		if err := control.SetWriteDeadline(time.Time{}); err != nil {
			g.log.Debug("deadline not lifted", "error", err)
		}
	}
}
