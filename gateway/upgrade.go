package gateway

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// SocketPath is where the WebSocket is.
const SocketPath = "/v1/ws"

// noWriteBuffers keeps the library from giving each socket a write buffer: we
// write frames ourselves, and the library only a close frame, now and then.
type noWriteBuffers struct{}

func (noWriteBuffers) Get() any { return nil }
func (noWriteBuffers) Put(any)  {}

func (g *Gateway) newUpgrader() *websocket.Upgrader {
	return &websocket.Upgrader{
		HandshakeTimeout: 5 * time.Second,
		ReadBufferSize:   0, // that of hijacker
		WriteBufferSize:  256,
		WriteBufferPool:  noWriteBuffers{},
		Subprotocols:     []string{SubprotocolProto, SubprotocolJSON},
		CheckOrigin:      func(*http.Request) bool { return true }, // checked before
		Error:            g.badHandshake,
	}
}

// badHandshake answers what is no WebSocket handshake, in the form of our errors.
func (g *Gateway) badHandshake(w http.ResponseWriter, r *http.Request, _ int, cause error) {
	w.Header().Set("Sec-WebSocket-Version", "13")
	g.reject(w, r, rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT, "%v", cause))
}

// upgrade opens a socket. Whatever is wrong before it stands is answered as an
// HTTP error with the usual detail.
func (g *Gateway) upgrade(w http.ResponseWriter, r *http.Request) {
	address := g.admission.addressOf(r)
	source := g.admission.source(address)
	if wait, limit := source.admitSocket(); wait > 0 {
		g.metrics.handshake(r.Context(), limit)
		g.reject(w, r, errRateLimited(wait, "too many sockets"))
		return
	}
	if err := g.checkUpgrade(r); err != nil {
		source.leaveUnknown()
		g.metrics.handshake(r.Context(), "refused")
		g.reject(w, r, err)
		return
	}
	if !g.open.enter() {
		source.leaveUnknown()
		g.metrics.handshake(r.Context(), "draining")
		g.reject(w, r, errShuttingDown())
		return
	}
	h := &hijacker{ResponseWriter: w}
	ws, err := g.upgrader.Upgrade(h, r, nil) // answers the request by itself on an error
	if err != nil {
		source.leaveUnknown()
		g.open.leave()
		g.metrics.handshake(r.Context(), "failed")
		return
	}
	c := &connection{
		gw: g, ws: ws, arrival: h.arrival, format: formatOf(ws.Subprotocol()), source: source,
		address: address, opened: time.Now(), device: deviceOf(r),
	}
	ws.SetPingHandler(c.onPing)
	ws.SetPongHandler(c.onPong)
	ws.SetCloseHandler(func(int, string) error { return nil }) // finish answers
	g.metrics.connections.Add(g.base, 1, g.metrics.unauth)     //nolint:contextcheck // outlives the request
	g.wheel.add(&c.entry, c, c.firstWake())                    // before anybody can find it and end it
	g.hub.greet(c)
	if g.draining.Load() {
		c.drain()
	}
	// Not on the request's goroutine, which has a stack that HTTP has grown.
	if raw := bearer(r); raw != "" {
		g.workers.run(&opening{c: c, token: strings.Clone(raw)})
	} else {
		go c.open()
	}
}

// checkUpgrade says why a socket may not be opened, nil if it may.
func (g *Gateway) checkUpgrade(r *http.Request) error {
	if g.draining.Load() {
		return errShuttingDown()
	}
	if !g.originAllowed(r) {
		return rpc.Error(connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED, "this origin may not connect")
	}
	if asked := websocket.Subprotocols(r); len(asked) > 0 &&
		!slices.Contains(asked, SubprotocolProto) && !slices.Contains(asked, SubprotocolJSON) {
		return rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT,
			"subprotocols are %s and %s", SubprotocolProto, SubprotocolJSON)
	}
	if len(r.Header.Values("Authorization")) == 0 {
		return nil
	}
	// Checked here for its HTTP status; welcome checks it again, from memory.
	_, err := rpc.Authenticate(r.Context(), g.verifier, nil, r.Header)
	return err //nolint:wrapcheck // coded
}

func errShuttingDown() *connect.Error {
	return rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_OVERLOADED,
		"this gateway is shutting down: reconnect"), time.Second)
}
