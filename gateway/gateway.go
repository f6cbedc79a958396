// Package gateway is the edge of Parley: it ends WebSockets, verifies tokens and
// routes calls to the services.
//
// It owns the sockets, their protocol (docs/protocol.md) and their limits, and
// the way from a push on the bus to the sockets of a person. It owns no data.
//
// Invariants: only methods whose access option admits outsiders are routed, and
// none that needs a person without that person's verified token; services
// verify the token again. A socket is welcomed only after its person is
// subscribed. A socket that may have missed a push is told to resync or closed,
// never left unaware. A revoked session has no socket. Nothing that a client
// sends makes the gateway hold more than a fixed amount for it.
//
// It never reads the messages that it routes, trusts no header that says who is
// calling, and keeps nothing that a restart would lose.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// Deps is what a gateway is given.
type Deps struct {
	Dialer rpc.Dialer
	NATS   *nats.Conn
	// Loopback carries the pushes of services in the same process; nil unless NATS
	// runs in it as well.
	Loopback *realtime.Loopback
	// Redis is where it is written down who is connected here; nil: nowhere, and
	// people who are only connected here look offline.
	Redis    rueidis.Client
	Verifier *token.Verifier
	// Revocations is fed by its owner (Follow); the gateway closes the sockets of
	// revoked sessions. May be nil in tests.
	Revocations *token.Revocations
	Clock       clock.Clock
	Log         *slog.Logger
	// Pages serves what is neither RPC nor socket, such as the web client. May be
	// nil.
	Pages http.Handler
	// Methods is the route table; rpc.Methods() if nil.
	Methods map[string]rpc.Method
	// Meter is the global provider if nil.
	Meter metric.MeterProvider
}

const scope = "github.com/parleychat/parley/gateway"

// Gateway is one edge node. Make it with New and run it with Run, once.
type Gateway struct {
	cfg         Config
	log         *slog.Logger
	clock       clock.Clock
	verifier    *token.Verifier
	revocations *token.Revocations
	pages       http.Handler
	tracer      trace.Tracer
	meter       metric.Meter
	propagator  propagation.TextMapPropagator

	// base lives as long as the process: calls of sockets and metrics.
	base       context.Context //nolint:containedctx // the parent of what no request starts
	start      time.Time
	metrics    *metrics
	routes     routes
	keys       *httputil.ReverseProxy
	errors     *connect.ErrorWriter
	admission  *admission
	upgrader   *websocket.Upgrader
	wheel      *wheel
	hub        *hub
	subscriber *realtime.Subscriber
	presence   *presenceDesk
	workers    *workers

	// tooManyCalls is what a call beyond a socket's bound is told, and laneBehind one
	// whose lane is too slow: made once, and never changed.
	tooManyCalls, laneBehind *realtimev1.Error

	draining atomic.Bool
	disputed atomic.Int64 // when an operator was last warned of a wrong clock
	open     *tally       // sockets
}

// New makes a gateway. It connects to nothing yet. The error names what is wrong
// with the configuration.
func New(ctx context.Context, cfg Config, deps Deps) (*Gateway, error) {
	admission, err := newAdmission(&cfg)
	if err != nil {
		return nil, err
	}
	deps.fill()
	meter := deps.Meter.Meter(scope)
	metrics, err := newMetrics(meter)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg: cfg, log: deps.Log, clock: deps.Clock,
		verifier: deps.Verifier, revocations: deps.Revocations, pages: deps.Pages,
		tracer: otel.Tracer(scope), meter: meter, propagator: otel.GetTextMapPropagator(),
		base: context.WithoutCancel(ctx), start: time.Now(),
		metrics: metrics, admission: admission,
		tooManyCalls: toError(errTooManyCalls(cfg.Socket.OpenCalls)), laneBehind: toError(errLaneBehind(cfg.Socket.LaneWait)),
		errors: connect.NewErrorWriter(),
		wheel:  newWheel(cfg.Socket.WheelTick),
		hub:    newHub(cfg.Limits.UserSockets),
		open:   newTally(), workers: newWorkers(),
	}
	g.upgrader = g.newUpgrader()
	g.routes = newRoutes(deps.Methods, deps.Dialer, g.proxyTo)
	g.keys = g.proxyTo(deps.Dialer.Backend("auth")) //nolint:contextcheck // the context is that of each request
	g.subscriber = realtime.NewSubscriber(deps.NATS, deps.Log, realtime.SubscriberConfig{
		Frame: g.hub.deliver, Traced: g.hub.deliverTraced, Loss: g.resyncAll, Loopback: deps.Loopback,
	})
	g.hub.subscriber = g.subscriber
	if g.presence, err = newPresenceDesk(g, deps); err != nil {
		return nil, err
	}
	if g.revocations != nil {
		g.revocations.Notify(g.hub.endSession)
	}
	return g, nil
}

func (d *Deps) fill() {
	if d.Methods == nil {
		d.Methods = rpc.Methods()
	}
	if d.Meter == nil {
		d.Meter = otel.GetMeterProvider()
	}
}

// Handler serves sockets, calls and pages. Sockets live only while Run does.
func (g *Gateway) Handler() http.Handler { return g }

// Ready tells by its error why no traffic should come now.
func (g *Gateway) Ready(ctx context.Context) error {
	if g.draining.Load() {
		return errDraining
	}
	return g.subscriber.Ready(ctx)
}

var errDraining = errors.New("draining")

// resyncAll tells all sockets that pushes may have been lost, spread so that
// their Syncs are too.
func (g *Gateway) resyncAll(loss realtime.Loss) {
	g.metrics.losses.Add(g.base, 1, g.metrics.with("cause", string(loss)))
	g.hub.each(func(c *connection) { c.resyncIn(g.spread(g.cfg.Socket.ResyncWindow)) })
}
