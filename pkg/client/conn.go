// Package client is the Go client of Parley's realtime protocol
// (docs/protocol.md), for tools, bots and tests.
//
// Conn is one authenticated WebSocket: calls, pushes, renewal, close codes.
// Device stands above it and is what an app has: it reconnects, syncs, repairs
// holes and shows every conversation's log once and in order, whatever happens
// to its connections. Neither knows anything that the protocol page does not say.
package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/proto"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// Subprotocol is the binary form of the protocol, which this client speaks.
const Subprotocol = "parley.v1.proto"

const (
	// handshakeTimeout bounds TCP, the upgrade and Welcome together.
	handshakeTimeout = 15 * time.Second
	// writeTimeout bounds one frame's write; a peer that takes longer is gone.
	writeTimeout = 10 * time.Second
	// silence is how long the server may say nothing at all, not even a ping
	// (every 25 s, by the protocol), before the connection is taken for dead.
	silence = 75 * time.Second
	// proof is how long a connection that is in doubt has to show that it lives.
	proof = 5 * time.Second
)

// Config is how to reach a gateway and as whom.
type Config struct {
	// URL of the socket: "ws://127.0.0.1:8080/v1/ws".
	URL string
	// Token returns a valid access token; asked at every connect.
	Token func(context.Context) (string, error)
	// OnPush gets every push, in the order of arrival, on the reader's goroutine: it
	// must not block and must not call. A nil Push stands for Resync.
	OnPush func(*realtimev1.Push)
	// Device is what others are shown of this one when it is online.
	Device realtimev1.DeviceKind
	// NetDial replaces the TCP dialer, for source addresses and cut networks. Nil:
	// the default one.
	NetDial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Conn is one authenticated connection. Its methods may be called at once.
type Conn struct {
	ws      *websocket.Conn
	welcome *realtimev1.Welcome
	onPush  func(*realtimev1.Push)

	writing sync.Mutex // one frame at a time
	// heard is when the server last sent anything; probing says that a ping asks it to.
	heard   atomic.Int64
	probing atomic.Bool

	mu     sync.Mutex
	nextID uint32
	open   map[uint32]chan *realtimev1.ServerFrame
	err    error
	done   chan struct{}
}

// writeBuffers are shared, so that an idle connection holds none.
var writeBuffers sync.Pool

// Dial connects, authenticates in the first frame and returns when Welcome has
// arrived: from then on pushes flow. Errors are *CloseError where the server
// closed, *connect.Error where it refused the upgrade, otherwise the network's.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	token, err := cfg.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("get access token: %w", err)
	}
	dialer := websocket.Dialer{
		NetDialContext: cfg.NetDial, Subprotocols: []string{Subprotocol},
		ReadBufferSize: 1024, WriteBufferSize: 1024, WriteBufferPool: &writeBuffers,
	}
	ws, res, err := dialer.DialContext(ctx, cfg.URL, http.Header{}) //nolint:bodyclose // the library needs no Close of this body
	if err != nil {
		return nil, dialError(res, err)
	}
	c := &Conn{ws: ws, onPush: cfg.OnPush, nextID: 1, open: map[uint32]chan *realtimev1.ServerFrame{}, done: make(chan struct{})}
	c.awaitSilence()
	ready := c.expect(1)
	go c.read()
	if err := c.write(&realtimev1.ClientFrame{Id: 1, Frame: &realtimev1.ClientFrame_Authenticate{
		Authenticate: &realtimev1.Authenticate{AccessToken: token, Device: cfg.Device},
	}}); err != nil {
		c.fail(err)
		return nil, c.Err()
	}
	frame, err := c.await(ctx, 1, ready)
	if err != nil {
		c.fail(err)
		return nil, err
	}
	c.welcome = frame.GetWelcome()
	if c.welcome == nil {
		c.fail(errors.New("the first answer is no Welcome"))
		return nil, c.Err()
	}
	return c, nil
}

// dialError turns a refused upgrade into a connect error by its HTTP status.
func dialError(res *http.Response, err error) error {
	if res == nil {
		return fmt.Errorf("dial: %w", err)
	}
	code := connect.CodeUnavailable
	switch res.StatusCode {
	case http.StatusUnauthorized:
		code = connect.CodeUnauthenticated
	case http.StatusForbidden:
		code = connect.CodePermissionDenied
	case http.StatusTooManyRequests:
		code = connect.CodeResourceExhausted
	}
	return connect.NewError(code, fmt.Errorf("upgrade refused with status %d: %w", res.StatusCode, err))
}

// Welcome is what the server said at the start.
func (c *Conn) Welcome() *realtimev1.Welcome { return c.welcome }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection in good order.
func (c *Conn) Close() error {
	msg := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	// The peer may be gone already, then there is nobody to tell.
	_ = c.ws.WriteControl(websocket.CloseMessage, msg, time.Now().Add(time.Second))
	c.fail(net.ErrClosed)
	return nil
}

// Cut drops the TCP connection without a word, as a lost network does.
func (c *Conn) Cut() { c.fail(net.ErrClosed) }

// Renew prolongs the connection with a newer token of the same session. It
// returns the new Welcome.
func (c *Conn) Renew(ctx context.Context, token string) (*realtimev1.Welcome, error) {
	frame, err := c.roundTrip(ctx, &realtimev1.ClientFrame{Frame: &realtimev1.ClientFrame_Authenticate{
		Authenticate: &realtimev1.Authenticate{AccessToken: token},
	}})
	if err != nil {
		return nil, err
	}
	if e := frame.GetReply().GetError(); e != nil {
		return nil, replyError(e)
	}
	if frame.GetWelcome() == nil {
		return nil, errors.New("renewal was not answered by Welcome")
	}
	return frame.GetWelcome(), nil
}

// Ping asks the server for a sign of life.
func (c *Conn) Ping(ctx context.Context) error {
	_, err := c.roundTrip(ctx, &realtimev1.ClientFrame{Frame: &realtimev1.ClientFrame_Ping{Ping: &realtimev1.Ping{}}})
	return err
}

// Call runs a unary RPC in a lane ("" for none) and fills res. Errors are
// *connect.Error as over HTTP; unavailable when the connection ended before the
// answer, so the outcome is unknown.
func (c *Conn) Call(ctx context.Context, procedure, lane string, req, res proto.Message) error {
	p, err := c.Begin(ctx, procedure, lane, req)
	if err != nil {
		return err
	}
	return p.Wait(ctx, res)
}

// Pending is a call that has been sent and not been answered.
type Pending struct {
	conn      *Conn
	procedure string
	id        uint32
	sent      time.Time
	answer    <-chan *realtimev1.ServerFrame
}

// Begin sends a call and does not wait for its answer: calls of one lane run in
// the order in which Begin was called. Every Pending needs its Wait. ctx gives
// the deadline that the server is told. The error is about the request; what
// befell the connection is told by Wait.
func (c *Conn) Begin(ctx context.Context, procedure, lane string, req proto.Message) (*Pending, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("encode %s: %w", procedure, err))
	}
	call := &realtimev1.Call{Procedure: procedure, Lane: lane, Request: body}
	if deadline, ok := ctx.Deadline(); ok {
		call.TimeoutMs = uint32(min(max(time.Until(deadline).Milliseconds(), 1), math.MaxUint32))
	}
	sent := time.Now()
	id, answer := c.send(&realtimev1.ClientFrame{Frame: &realtimev1.ClientFrame_Call{Call: call}})
	return &Pending{conn: c, procedure: procedure, id: id, sent: sent, answer: answer}, nil
}

// Wait waits for the answer and fills res. Errors are those of Call.
func (p *Pending) Wait(ctx context.Context, res proto.Message) error {
	frame, err := p.conn.await(ctx, p.id, p.answer)
	if err != nil {
		p.conn.doubt(err, p.sent)
		return err
	}
	return decodeReply(frame, p.procedure, res)
}

func decodeReply(frame *realtimev1.ServerFrame, what string, res proto.Message) error {
	reply := frame.GetReply()
	if reply == nil {
		return connect.NewError(connect.CodeInternal, errors.New("the answer is no Reply"))
	}
	if e := reply.GetError(); e != nil {
		return replyError(e)
	}
	if err := proto.Unmarshal(reply.GetResponse(), res); err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("decode answer of %s: %w", what, err))
	}
	return nil
}

// Watch changes whose presence is pushed to this connection, and returns that of
// those who are added. Errors are those of Call.
func (c *Conn) Watch(ctx context.Context, watch *realtimev1.Watch) (*realtimev1.Watched, error) {
	sent := time.Now()
	frame, err := c.roundTrip(ctx, &realtimev1.ClientFrame{Frame: &realtimev1.ClientFrame_Watch{Watch: watch}})
	if err != nil {
		c.doubt(err, sent)
		return nil, err
	}
	watched := &realtimev1.Watched{}
	if err := decodeReply(frame, "watch", watched); err != nil {
		return nil, err
	}
	return watched, nil
}

// doubt asks for a sign of life after something got no answer in its time and
// nothing was heard since it was sent: a server that is frozen breaks no
// connection. Without one the connection ends, and whoever uses it reconnects.
func (c *Conn) doubt(err error, sent time.Time) {
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded || c.heard.Load() >= sent.UnixNano() || !c.probing.CompareAndSwap(false, true) {
		return
	}
	go c.probe()
}

func (c *Conn) probe() {
	defer c.probing.Store(false)
	asked := time.Now().UnixNano()
	timer := time.NewTimer(proof)
	defer timer.Stop()
	// The answer is of no use beyond being one: any frame will do.
	id, answer := c.send(&realtimev1.ClientFrame{Frame: &realtimev1.ClientFrame_Ping{Ping: &realtimev1.Ping{}}})
	select {
	case <-answer:
		return
	case <-c.done:
		return
	case <-timer.C:
	}
	c.mu.Lock()
	delete(c.open, id)
	c.mu.Unlock()
	if c.heard.Load() < asked {
		c.fail(errNoSignOfLife)
	}
}

// errNoSignOfLife is why a connection ended on which the server said nothing, not
// even when it was asked to.
var errNoSignOfLife = errors.New("the server gives no sign of life")

func (c *Conn) roundTrip(ctx context.Context, frame *realtimev1.ClientFrame) (*realtimev1.ServerFrame, error) {
	id, answer := c.send(frame)
	return c.await(ctx, id, answer)
}

// send gives a frame its id and writes it. A failed write ends the connection,
// which is what the waiting side then sees.
func (c *Conn) send(frame *realtimev1.ClientFrame) (uint32, <-chan *realtimev1.ServerFrame) {
	frame.Id = c.newID()
	answer := c.expect(frame.GetId())
	if err := c.write(frame); err != nil {
		c.fail(err)
	}
	return frame.GetId(), answer
}

func (c *Conn) newID() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	if c.nextID == 0 { // 0 is the server's own
		c.nextID++
	}
	return c.nextID
}

// expect registers interest in the answer to a frame.
func (c *Conn) expect(id uint32) <-chan *realtimev1.ServerFrame {
	answer := make(chan *realtimev1.ServerFrame, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[id] = answer
	return answer
}

func (c *Conn) await(ctx context.Context, id uint32, answer <-chan *realtimev1.ServerFrame) (*realtimev1.ServerFrame, error) {
	select {
	case f := <-answer:
		return f, nil
	case <-c.done:
	case <-ctx.Done():
	}
	c.mu.Lock()
	delete(c.open, id)
	err := c.err
	c.mu.Unlock()
	select {
	case f := <-answer: // arrived in the same moment
		return f, nil
	default:
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, connect.NewError(connect.CodeCanceled, ctx.Err())
	}
	return nil, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
}

func (c *Conn) write(frame *realtimev1.ClientFrame) error {
	body, err := proto.Marshal(frame)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.ws.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	if err := c.ws.WriteMessage(websocket.BinaryMessage, body); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// awaitSilence (re)starts the time after which a silent server counts as gone.
func (c *Conn) awaitSilence() {
	c.heard.Store(time.Now().UnixNano())
	_ = c.ws.SetReadDeadline(time.Now().Add(silence)) // fails only on a closed connection, which the reader sees itself
}

func (c *Conn) read() {
	pong := c.ws.PingHandler()
	c.ws.SetPingHandler(func(data string) error {
		c.awaitSilence()
		return pong(data)
	})
	for {
		_, body, err := c.ws.ReadMessage()
		if err != nil {
			c.fail(closeError(err))
			return
		}
		c.awaitSilence()
		var frame realtimev1.ServerFrame
		if err := proto.Unmarshal(body, &frame); err != nil {
			c.fail(fmt.Errorf("decode frame: %w", err))
			return
		}
		c.dispatch(&frame)
	}
}

func (c *Conn) dispatch(frame *realtimev1.ServerFrame) {
	switch f := frame.GetFrame().(type) {
	case *realtimev1.ServerFrame_Push:
		if c.onPush != nil {
			c.onPush(f.Push)
		}
	case *realtimev1.ServerFrame_Resync:
		if c.onPush != nil {
			c.onPush(nil)
		}
	default:
		c.mu.Lock()
		answer := c.open[frame.GetId()]
		delete(c.open, frame.GetId())
		c.mu.Unlock()
		if answer != nil {
			answer <- frame // buffered, one answer per id
		}
	}
}

// fail ends the connection once, with the first cause.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	close(c.done)
	c.mu.Unlock()
	_ = c.ws.Close() // nothing is left to lose
}
