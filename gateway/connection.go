package gateway

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// connection is one socket.
//
// It has exactly one reading goroutine for its whole life, and each frame makes
// that a new one: the old goroutine handles the frame on its grown stack and
// ends. So a socket at rest holds the smallest stack there is (see arrival),
// one small read buffer, and this struct; no timer, no writer, no map.
type connection struct {
	gw      *Gateway
	ws      *websocket.Conn
	arrival arrival
	format  format
	source  *source
	address netip.Addr // of the client, for the services' logs
	opened  time.Time
	entry   wheelEntry

	// Written by the reader before the socket is in the hub, then fixed.
	user, session uuid.UUID
	device        realtimev1.DeviceKind
	// Links of the hub's lists, under its locks.
	nextOfUser, nextOfSession *connection

	// token is changed by the reader alone, under mu: others who read it hold that.
	token string
	// Of the reader alone.
	bucket bucket

	// heard is when the client last gave a sign of life, since Gateway.start.
	heard atomic.Int64
	// expires is the end of the token in Unix seconds; 0 before authentication.
	expires atomic.Int64
	// resyncAt and drainAt are since Gateway.start; 0 = not wanted.
	resyncAt, drainAt atomic.Int64
	// pingAt belongs to the wheel.
	pingAt time.Duration

	mu         sync.Mutex
	queue      []outgoing
	queued     int // bytes, those being written included
	flushing   bool
	flushSince time.Time
	welcomed   bool // pushes may go out
	draining   bool // takes no new calls
	ending     bool // a close frame is queued or was written
	finished   bool // the reader is gone
	code       int  // of the close frame
	endBy      time.Time
	calls      openCalls
	watching   *watchList // nil until the first Watch
	unwatched  bool       // no list is made any more
}

var readBuffers = sync.Pool{New: func() any {
	buffer := make([]byte, 0, 1024)
	return &buffer
}}

// errTooBig ends a socket with 1009.
var errTooBig = errors.New("message is larger than allowed")

// next reads one message of at most limit bytes. The buffer goes back to
// readBuffers. It is kept shallow: its frames are what an idle socket's stack
// holds.
func (c *connection) next(limit int) (opcode int, buffer *[]byte, err error) {
	opcode, reader, err := c.ws.NextReader()
	if err != nil {
		return 0, nil, err
	}
	buffer, _ = readBuffers.Get().(*[]byte)
	data := (*buffer)[:0]
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := reader.Read(data[len(data):min(cap(data), limit+1)])
		data = data[:len(data)+n]
		if len(data) > limit {
			*buffer = data[:0]
			readBuffers.Put(buffer)
			return 0, nil, errTooBig
		}
		if errors.Is(err, io.EOF) {
			*buffer = data
			return opcode, buffer, nil
		}
		if err != nil {
			readBuffers.Put(buffer)
			return 0, nil, err
		}
	}
}

// await waits for the next frame and takes it.
func (c *connection) await() {
	c.arrival.wait()
	c.read()
}

// read takes one frame and hands the reading on to a fresh goroutine.
func (c *connection) read() {
	opcode, buffer, err := c.next(c.gw.cfg.Socket.FrameBytes)
	switch {
	case errors.Is(err, errTooBig):
		c.end(closeTooBig, "TOO_LARGE")
	case err != nil:
		c.finish(err)
		return
	default:
		c.hear()
		c.handle(opcode, *buffer)
		readBuffers.Put(buffer)
	}
	go c.await()
}

// handle does what a frame asks for. It runs on the reader.
func (c *connection) handle(opcode int, data []byte) {
	if c.isEnding() {
		return
	}
	frame, code, reason := c.decode(opcode, data)
	if code != 0 {
		c.end(code, reason)
		return
	}
	ok, wait := c.bucket.take(c.gw.now(), c.gw.cfg.Socket.FrameRate, c.gw.cfg.Socket.FrameBurst)
	if !ok && wait == 0 {
		c.end(closeTooMany, comeBack(c.gw.spread(c.gw.cfg.Socket.AbuseReconnect)))
		return
	}
	switch kind := frame.GetFrame().(type) {
	case *realtimev1.ClientFrame_Call:
		c.countIn(kindCall)
		c.call(frame.GetId(), kind.Call, wait)
	case *realtimev1.ClientFrame_Authenticate:
		c.countIn(kindAuthenticate)
		c.renew(frame.GetId(), kind.Authenticate.GetAccessToken())
	case *realtimev1.ClientFrame_Watch:
		c.countIn(kindWatch)
		c.watch(frame.GetId(), kind.Watch, wait)
	case *realtimev1.ClientFrame_Ping:
		c.countIn(kindPing)
		c.reply(&realtimev1.ServerFrame{
			Id: frame.GetId(), Frame: &realtimev1.ServerFrame_Pong{Pong: &realtimev1.Pong{}},
		}, kindPong)
	default:
		c.countIn(kindUnknown)
		c.end(closeBadFrame, reasonBadFrame)
	}
}

// decode gives the frame or the code and reason to close with.
func (c *connection) decode(opcode int, data []byte) (frame *realtimev1.ClientFrame, code int, reason string) {
	if opcode != int(c.format.opcode()) {
		return nil, closeWrongType, "WRONG_MESSAGE_TYPE"
	}
	frame, err := c.format.decode(data)
	switch {
	case errors.Is(err, errNotUTF8):
		return nil, closeNotUTF8, "NOT_UTF8"
	case err != nil || frame.GetId() == 0:
		return nil, closeBadFrame, reasonBadFrame
	}
	return frame, 0, ""
}

// reply queues a frame that answers the client or comes from the gateway itself.
func (c *connection) reply(frame *realtimev1.ServerFrame, k kind) {
	data, err := c.format.encode(frame)
	if err != nil {
		// Only an unknown detail of an error can fail here, and call leaves those
		// out; so this is a fault of ours.
		c.gw.log.Error("frame not sent", "kind", k.String(), "error", err)
		c.end(websocket.CloseInternalServerErr, "INTERNAL")
		return
	}
	c.send(outgoing{payload: data, opcode: c.format.opcode(), kind: k})
}

// push queues a push, unless the client has not been welcomed: it will Sync
// after the welcome, which covers what came before.
func (c *connection) push(p *prepared) {
	c.mu.Lock()
	welcomed := c.welcomed
	c.mu.Unlock()
	if !welcomed {
		return
	}
	data, err := c.format.pushed(p)
	if err != nil {
		// The client may repair by Sync what cannot be pushed to it.
		c.gw.log.Error("push not sent", "error", err)
		c.resyncIn(c.gw.spread(c.gw.cfg.Socket.ResyncWindow))
		return
	}
	c.send(outgoing{payload: data, at: p.at, soft: p.soft, origin: p.origin, opcode: c.format.opcode(), kind: p.kind})
}

// onPing answers a ping of the protocol. It runs within next.
func (c *connection) onPing(payload string) error {
	c.hear()
	ok, wait := c.bucket.take(c.gw.now(), c.gw.cfg.Socket.FrameRate, c.gw.cfg.Socket.FrameBurst)
	if !ok && wait == 0 {
		c.end(closeTooMany, comeBack(c.gw.spread(c.gw.cfg.Socket.AbuseReconnect)))
	}
	// Nothing is written for a stranger: the answer would cost a goroutine.
	if ok && c.expires.Load() != 0 {
		c.send(outgoing{payload: []byte(payload), opcode: websocket.PongMessage, kind: kindPong})
	}
	return nil
}

func (c *connection) onPong(string) error {
	c.hear()
	return nil
}

func (c *connection) hear() { c.heard.Store(int64(c.gw.now())) }

func (c *connection) countIn(k kind) { c.gw.metrics.in[k].Add(1) }

// end closes the socket in good manners: what is queued goes out, then the close
// frame; then the client has some seconds to answer it.
func (c *connection) end(code int, reason string) {
	c.mu.Lock()
	c.endLocked(code, reason, false)
	c.mu.Unlock()
}

// endLocked is end; dropQueue leaves out what is still queued.
func (c *connection) endLocked(code int, reason string, dropQueue bool) {
	if c.ending {
		return
	}
	if dropQueue {
		for i := range c.queue {
			c.queued -= len(c.queue[i].payload) + itemOverhead
		}
		c.queue = nil
	}
	payload := closePayload(code, reason)
	c.enqueueLocked(outgoing{payload: payload, opcode: websocket.CloseMessage, kind: kindClose}, len(payload)+itemOverhead)
	c.ending = true
	c.code = code
	grace := c.gw.cfg.Socket.CloseGrace
	c.endBy = time.Now().Add(grace)
	// A client that reads nothing must not hold a writer for longer.
	if err := c.ws.NetConn().SetWriteDeadline(c.endBy); err != nil {
		c.gw.log.Debug("deadline of a closing socket", "error", err)
	}
	c.gw.wheel.within(&c.entry, grace)
}

func (c *connection) isEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

// cut closes the socket at once, without a word.
func (c *connection) cut() {
	if err := c.ws.NetConn().Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		c.gw.log.Debug("close socket", "error", err)
	}
}

// finish undoes the socket. It is called once, by the reader, when there is
// nothing more to read.
func (c *connection) finish(cause error) {
	c.gw.hub.remove(c)
	c.unwatch()
	c.gw.wheel.remove(&c.entry)

	var closed *websocket.CloseError
	fault := !errors.As(cause, &closed) && !isNetworkEnd(cause)
	if closed != nil {
		// The answer to a close of the client's; nothing if it answers ours.
		code := closed.Code
		if code == websocket.CloseNoStatusReceived {
			code = closeNormal
		}
		c.end(code, "")
	}
	c.mu.Lock()
	c.finished = true
	code := c.code
	flushing := c.flushing
	cancels := c.calls.abandon()
	c.mu.Unlock()
	for _, cancel := range cancels {
		cancel()
	}
	switch {
	case code != 0:
	case fault:
		code = websocket.CloseProtocolError
		c.linger()
	default:
		code = websocket.CloseAbnormalClosure
	}
	if !flushing || closed == nil {
		c.cut()
	}
	c.gw.left(c, code)
}

// isNetworkEnd tells a broken connection from a client that broke the protocol.
func isNetworkEnd(err error) bool {
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &network)
}

const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

// linger reads on for a moment after the library has answered a breach of the
// protocol with a close frame: closing with unread input would make the kernel
// send a reset, and the client would never see the frame.
func (c *connection) linger() {
	conn := c.ws.NetConn()
	if err := conn.SetReadDeadline(time.Now().Add(lingerTime)); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return
		}
	}
	// Whatever ends it, the socket is cut next.
	_, _ = io.CopyN(io.Discard, conn, lingerBytes)
}

// left is the end of a socket's accounting.
func (g *Gateway) left(c *connection, code int) {
	if c.expires.Load() != 0 {
		g.metrics.connections.Add(g.base, -1, g.metrics.auth)
		c.source.leave()
	} else {
		g.metrics.connections.Add(g.base, -1, g.metrics.unauth)
		c.source.leaveUnknown()
	}
	g.metrics.closed(g.base, code)
	g.open.leave()
}
