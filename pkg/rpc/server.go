package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"connectrpc.com/validate"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/token"
)

// Config is what a server is made of. Only Service and Log are needed; without a
// verifier its kind of token is refused.
type Config struct {
	Service  string
	Log      *slog.Logger
	Users    *token.Verifier
	Services *token.ServiceVerifier
	// MaxRequestBytes bounds one message after decompression; 1 MiB.
	MaxRequestBytes int
	// DefaultTimeout is the deadline of a call that names none; 10 s.
	DefaultTimeout time.Duration
	// MaxTimeout caps the deadline that a caller names; 30 s. Streams are not
	// capped, they end with their caller.
	MaxTimeout time.Duration
	// CompressMinBytes is the size from which answers are compressed; 1024, for
	// gzip of tiny answers would be a third of the cost of a call.
	CompressMinBytes int
	// DrainGrace is how long Serve waits for running calls when it ends; 15 s.
	DrainGrace time.Duration
	// Telemetry; the global providers where nil.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	Propagator     propagation.TextMapPropagator
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.MaxRequestBytes, 1<<20)
	setDefault(&c.DefaultTimeout, 10*time.Second)
	setDefault(&c.MaxTimeout, 30*time.Second)
	setDefault(&c.CompressMinBytes, 1024)
	setDefault(&c.DrainGrace, 15*time.Second)
	if c.TracerProvider == nil {
		c.TracerProvider = otel.GetTracerProvider()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = otel.GetMeterProvider()
	}
	if c.Propagator == nil {
		c.Propagator = otel.GetTextMapPropagator()
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server serves the RPCs of one service, over the network and in process alike.
type Server struct {
	cfg      Config
	log      *slog.Logger
	options  []connect.HandlerOption
	rejects  metric.Int64Counter
	routes   map[string]http.Handler // "/parley.user.v1.UserService/" or a whole procedure
	plain    *http.ServeMux          // what is not RPC: key sets, well-known files
	calls    calls
	writer   *connect.ErrorWriter
	hasPlain bool
}

// NewServer makes a server without routes. Add them with Handle before serving.
func NewServer(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, log: cfg.Log,
		routes: make(map[string]http.Handler), plain: http.NewServeMux(),
		writer: connect.NewErrorWriter(),
	}
	s.calls.init()
	// Outermost first. The gate (identity) comes before all of them, because it
	// runs before the message is read.
	interceptors := []connect.Interceptor{&chain{server: s}, validate.NewInterceptor()}
	tracing, err := otelconnect.NewInterceptor(
		otelconnect.WithTrustRemote(),
		otelconnect.WithTracerProvider(cfg.TracerProvider),
		otelconnect.WithMeterProvider(cfg.MeterProvider),
		otelconnect.WithPropagator(cfg.Propagator),
	)
	if err != nil {
		// Only the creation of instruments can fail: serve, but say so.
		s.log.Error("RPC metrics and traces are off", "error", err)
	} else {
		interceptors = append([]connect.Interceptor{tracing}, interceptors...)
	}
	rejects, err := cfg.MeterProvider.Meter("github.com/parleychat/parley/pkg/rpc").Int64Counter("rpc.server.rejected",
		metric.WithDescription("Calls refused before the message was read: token or access."))
	if err != nil {
		s.log.Error("RPC rejections are not counted", "error", err)
	}
	s.rejects = rejects
	s.options = []connect.HandlerOption{
		connect.WithReadMaxBytes(cfg.MaxRequestBytes),
		connect.WithCompressMinBytes(cfg.CompressMinBytes),
		connect.WithRequestGate(s.gate),
		connect.WithInterceptors(interceptors...),
	}
	return s
}

// Options are for the New…ServiceHandler functions. A handler made without them
// has neither identity nor limits, so Handle is to be given none such.
func (s *Server) Options() []connect.HandlerOption { return s.options }

// Handle serves a service (path and handler as New…ServiceHandler returns them)
// or one procedure. It fails if the service is not linked, if a method of it has
// no access option, or if the path is taken. Not to be called while serving.
func (s *Server) Handle(path string, h http.Handler) error {
	if err := checkServed(path); err != nil {
		return err
	}
	if _, taken := s.routes[path]; taken {
		return fmt.Errorf("serve %s: already served", path)
	}
	s.routes[path] = h
	return nil
}

// HandleHTTP serves plain HTTP that is not RPC, without identity and limits. The
// pattern is one of http.ServeMux. It fails on a bad or a taken pattern.
func (s *Server) HandleHTTP(pattern string, h http.Handler) (err error) {
	// The mux has no way to ask: it panics.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("serve %s: %v", pattern, r)
		}
	}()
	s.plain.Handle(pattern, h)
	s.hasPlain = true
	return nil
}

// Handler serves everything that was added. The same one serves the network and
// callers in the same process.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	out := &completing{ResponseWriter: w}
	defer s.recoverHTTP(out, r)
	end, ok := s.calls.begin()
	if !ok {
		s.writeError(out, r, errDrained())
		return
	}
	defer end()
	if h := s.route(r.URL.Path); h != nil {
		h.ServeHTTP(out, r)
		out.finish()
		return
	}
	if s.hasPlain {
		if h, pattern := s.plain.Handler(r); pattern != "" {
			h.ServeHTTP(w, r)
			return
		}
	}
	s.writeError(out, r, ErrMethodUnknown())
}

func (s *Server) route(path string) http.Handler {
	if h, ok := s.routes[path]; ok {
		return h
	}
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		if _, known := Methods()[path]; known {
			return s.routes[path[:i+1]]
		}
	}
	return nil
}

func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	if err := s.writer.Write(w, r, err); err != nil {
		s.log.DebugContext(r.Context(), "write RPC error", "error", err)
	}
	if out, ok := w.(*completing); ok {
		out.finish() // the error is held back there
	}
}

// errForced is why contexts are canceled when running calls outlast the grace.
var errForced = errors.New("the server is shutting down")

// Serve serves HTTP/1.1 and HTTP/2 without TLS on a listener until ctx ends,
// then takes no new stream, waits up to DrainGrace for the running calls and
// cancels those that are left. It returns nil after an orderly end and closes
// the listener in any case.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	base, force := context.WithCancelCause(context.WithoutCancel(ctx))
	defer force(nil)
	srv := &http.Server{
		Handler:           s.Handler(),
		Protocols:         new(http.Protocols),
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 1000,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          10 * time.Second,
		},
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)

	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve RPC: %w", err)
	case <-ctx.Done():
	}
	return s.shutdown(base, srv, force)
}

func (s *Server) shutdown(base context.Context, srv *http.Server, force context.CancelCauseFunc) error {
	grace, cancel := context.WithTimeout(base, s.cfg.DrainGrace)
	defer cancel()
	err := srv.Shutdown(grace)
	if err == nil {
		return nil
	}
	s.log.WarnContext(base, "calls outlast the drain, they are canceled", "grace", s.cfg.DrainGrace)
	last, cancelLast := context.WithTimeout(context.WithoutCancel(base), time.Second)
	defer cancelLast()
	force(errForced)
	if err := srv.Shutdown(last); err == nil {
		return nil
	}
	if err := srv.Close(); err != nil {
		return fmt.Errorf("close RPC server: %w", err)
	}
	return nil
}

// Drain refuses new calls from now on (unavailable, OVERLOADED) and waits until
// the running ones have ended or ctx has. It is for servers that are called in
// process; Serve drains by itself.
func (s *Server) Drain(ctx context.Context) error { return s.calls.drain(ctx) }

func (s *Server) rejected(ctx context.Context, spec connect.Spec, err error) error {
	reason := ReasonOf(err).String()
	if s.rejects != nil {
		s.rejects.Add(ctx, 1, metric.WithAttributes(
			attribute.String("rpc.method", strings.TrimPrefix(spec.Procedure, "/")), attribute.String("reason", reason)))
	}
	s.log.DebugContext(ctx, "call refused", "procedure", spec.Procedure, "reason", reason)
	return err
}
