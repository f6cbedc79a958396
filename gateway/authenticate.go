package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// verifyTimeout bounds the fetch of keys, the only wait in verifying.
const verifyTimeout = 5 * time.Second

// opening is what a worker does for a socket up to its welcome: to check a token
// takes a deep stack. It is the socket's reader meanwhile, and starts the next.
type opening struct {
	c     *connection
	token string // that came with the upgrade, or empty: then frame must bring one
	frame *realtimev1.ClientFrame
	code  int // to close with instead
	why   string
}

func (o *opening) run() {
	if o.token != "" {
		o.c.welcome(0, o.token, o.c.device)
	} else {
		o.c.first(o.frame, o.code, o.why)
	}
	go o.c.await()
}

// open waits for the first frame, on the small stack of a goroutine of its own.
func (c *connection) open() {
	o := &opening{c: c}
	opcode, buffer, err := c.next(c.gw.cfg.Socket.AuthFrameBytes)
	switch {
	case errors.Is(err, errTooBig):
		o.code, o.why = closeTooBig, "TOO_LARGE"
	case err != nil:
		c.finish(err)
		return
	default:
		o.frame, o.code, o.why = c.decode(opcode, *buffer)
		readBuffers.Put(buffer)
	}
	c.gw.workers.run(o)
}

// first handles the first frame.
func (c *connection) first(frame *realtimev1.ClientFrame, code int, reason string) {
	if code == 0 && frame.GetFrame() == nil {
		code, reason = closeBadFrame, reasonBadFrame
	}
	if code != 0 {
		c.end(code, reason)
		return
	}
	authenticate := frame.GetAuthenticate()
	if authenticate == nil {
		c.end(closeUnauthentic, "TOKEN_MISSING")
		return
	}
	c.countIn(kindAuthenticate)
	c.welcome(frame.GetId(), authenticate.GetAccessToken(), authenticate.GetDevice())
}

// welcome authenticates the socket and subscribes its person. The order is the
// promise of Welcome: subscribed, flushed, and only then told, so that a Sync
// after it leaves no gap.
func (c *connection) welcome(id uint32, raw string, device realtimev1.DeviceKind) {
	claims, err := c.verify(raw)
	if err != nil {
		c.refuseToken(err)
		return
	}
	if c.isEnding() {
		return // the time to authenticate ran out meanwhile
	}
	c.user, c.session, c.token, c.device = claims.UserID, claims.SessionID, raw, device
	switch err := c.gw.hub.add(c); {
	case errors.Is(err, errTooManySockets):
		c.end(closeTooMany, comeBack(c.gw.spread(c.gw.cfg.Socket.AbuseReconnect)))
		return
	case err != nil:
		c.gw.log.Error("socket not subscribed", "error", err)
		c.end(closeTryLater, comeBack(c.gw.spread(c.gw.cfg.Socket.DrainReconnect)))
		return
	}
	c.expires.Store(claims.ExpiresAt.Unix())
	c.source.join()
	c.gw.metrics.connections.Add(c.gw.base, -1, c.gw.metrics.unauth)
	c.gw.metrics.connections.Add(c.gw.base, 1, c.gw.metrics.auth)
	if err := c.gw.subscriber.Flush(c.gw.base); err != nil {
		// The socket serves calls even so; its pushes begin with the Resync that
		// follows as soon as the subscription stands.
		c.gw.log.Debug("socket opened while the bus is away", "error", err)
	}
	// A revocation between verifying and the hub found no socket to close.
	if c.gw.revocations != nil && c.gw.revocations.Revoked(c.session) {
		c.end(closeUnauthentic, "SESSION_REVOKED")
		return
	}
	c.greet(id, claims)
	c.gw.wheel.within(&c.entry, c.gw.cfg.Socket.PingInterval/4)
	c.gw.metrics.handshake(c.gw.base, "welcomed")
	if c.gw.draining.Load() {
		c.drainIn(0) // it came in while the others were being told
	}
}

// greet sends Welcome; pushes may follow it from here on.
func (c *connection) greet(id uint32, claims token.Claims) {
	cfg := &c.gw.cfg.Socket
	frame := &realtimev1.ServerFrame{Id: id, Frame: &realtimev1.ServerFrame_Welcome{Welcome: &realtimev1.Welcome{
		UserId: claims.UserID.String(), SessionId: claims.SessionID.String(),
		TokenExpiresAt: timestamppb.New(claims.ExpiresAt), ServerTime: timestamppb.New(c.gw.clock.Now()),
		IdleInterval:  durationpb.New(cfg.IdleInterval),
		MaxFrameBytes: uint32(cfg.FrameBytes), MaxOpenCalls: uint32(cfg.OpenCalls), MaxWatches: uint32(cfg.Watches),
	}}}
	data, err := c.format.encode(frame)
	if err != nil {
		c.gw.log.Error("welcome not sent", "error", err)
		c.end(websocket.CloseInternalServerErr, "INTERNAL")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return
	}
	c.welcomed = true
	c.enqueueLocked(outgoing{payload: data, opcode: c.format.opcode(), kind: kindWelcome}, len(data)+itemOverhead)
}

// renew takes a newer token of the same session.
func (c *connection) renew(id uint32, raw string) {
	claims, err := c.verify(raw)
	switch {
	case errors.Is(err, token.ErrUnavailable):
		// The old token may have a while to go: the client tries again.
		c.refuse(id, rpc.TokenError(err))
	case err != nil:
		c.refuseToken(err)
	case claims.UserID != c.user || claims.SessionID != c.session:
		c.end(closeUnauthentic, "TOKEN_INVALID")
	default:
		c.mu.Lock()
		c.token = raw // for the calls that wait in lanes, too
		c.mu.Unlock()
		c.expires.Store(claims.ExpiresAt.Unix())
		c.greet(id, claims)
	}
}

func (c *connection) verify(raw string) (token.Claims, error) {
	ctx, cancel := context.WithTimeout(c.gw.base, verifyTimeout)
	defer cancel()
	return c.gw.verifier.Verify(ctx, raw) //nolint:wrapcheck // its sentinels decide
}

// refuseToken closes with what the client is to do about its token.
func (c *connection) refuseToken(err error) {
	switch {
	case errors.Is(err, token.ErrExpired):
		c.end(closeExpired, "TOKEN_EXPIRED")
	case errors.Is(err, token.ErrRevoked):
		c.end(closeUnauthentic, "SESSION_REVOKED")
	case errors.Is(err, token.ErrUnavailable):
		c.end(closeTryLater, comeBack(c.gw.spread(c.gw.cfg.Socket.DrainReconnect)))
	default:
		c.end(closeUnauthentic, "TOKEN_INVALID")
	}
}
