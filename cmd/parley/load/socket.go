package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/client"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const (
	// handshakeTimeout bounds TCP, the upgrade and Welcome together.
	handshakeTimeout = 20 * time.Second
	// callTimeout bounds calls that are no messages.
	callTimeout = 15 * time.Second
	// socketBuffer is what reading one socket holds: several small frames.
	socketBuffer = 1024
	// smallestBody is where buffers for frames begin; they grow to what came.
	smallestBody = 2048
)

// listener gets what a socket receives, on the socket's reader: it must not
// block. Slices are good until it returns.
type listener interface {
	pushed(s *socket, e *entry, now time.Time)
	resync(s *socket)
	closed(s *socket, err error)
}

// pending is what waits for an answer: a message, or a call with fn.
type pending struct {
	talk    *talk
	counter uint32
	fn      func(f *frame, err error)
}

// socket is one connection of one person. It has one goroutine, its reader,
// which also does what follows from what it read: no message passes a channel.
type socket struct {
	ws     *websocket.Conn
	to     listener
	person int // index among the people of this process
	// expires is the token's end, in seconds since 1970; idle is what Welcome
	// advised, fixed before the reader starts.
	expires atomic.Int64
	idle    time.Duration
	// heard is the keeper's tick at the last frame.
	heard atomic.Int64
	// cursor is where the last Sync ended; of whoever syncs.
	syncing sync.Mutex
	cursor  string
	// watching are the people whose presence this connection watches, unseen those of them whom the server told nothing of.
	watching, unseen atomic.Int32
	tick             *atomic.Int64

	mu     sync.Mutex
	write  writer
	nextID uint32
	open   map[uint32]pending
	gone   bool
}

var (
	writeBuffers sync.Pool
	bodies       = sync.Pool{New: func() any { b := make([]byte, smallestBody); return &b }}
)

var errGone = errors.New("the connection has ended")

// dialFrom makes a WebSocket dialer that comes from a source address ("" for any).
func dialFrom(source string) *websocket.Dialer {
	nd := &net.Dialer{Timeout: handshakeTimeout}
	if source != "" {
		nd.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	return &websocket.Dialer{
		NetDialContext: nd.DialContext, Subprotocols: []string{client.Subprotocol}, HandshakeTimeout: handshakeTimeout,
		ReadBufferSize: socketBuffer, WriteBufferSize: socketBuffer, WriteBufferPool: &writeBuffers,
	}
}

// dial connects, authenticates by the first frame and returns after Welcome,
// before anything else was read: call run then.
func dial(ctx context.Context, d *websocket.Dialer, url, token string) (*socket, error) {
	ws, res, err := d.DialContext(ctx, url, http.Header{}) //nolint:bodyclose // what is left of the body after a handshake needs no close
	if err != nil {
		if res != nil {
			return nil, fmt.Errorf("upgrade refused: http %d", res.StatusCode)
		}
		return nil, fmt.Errorf("dial: %w", err)
	}
	s := &socket{ws: ws, nextID: 1}
	if err := s.welcome(token); err != nil {
		_ = ws.Close() // the first error tells more
		return nil, err
	}
	return s, nil
}

func (s *socket) welcome(token string) error {
	if err := s.ws.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return fmt.Errorf("bound the handshake: %w", err)
	}
	if err := s.ws.WriteMessage(websocket.BinaryMessage, s.write.authenticate(1, token)); err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	_, body, err := s.ws.ReadMessage()
	if err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	var f frame
	if err := decodeFrame(body, &f); err != nil {
		return err
	}
	if f.kind != kindWelcome {
		return errors.New("authenticate: the first answer is no Welcome")
	}
	var w realtimev1.Welcome
	if err := proto.Unmarshal(f.body, &w); err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	s.expires.Store(w.GetTokenExpiresAt().GetSeconds())
	s.idle = w.GetIdleInterval().AsDuration()
	return s.ws.SetReadDeadline(time.Time{})
}

// run reads until the connection ends. It tells the listener, and every pending
// call, and returns.
func (s *socket) run() {
	err := s.read()
	_ = s.ws.Close() // it is over in any case
	s.mu.Lock()
	s.gone = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for _, p := range open {
		s.settle(p, nil, errGone)
	}
	s.to.closed(s, err)
}

func (s *socket) read() error {
	var f frame
	for {
		_, r, err := s.ws.NextReader() // answers pings on the way
		if err != nil {
			return err
		}
		now := time.Now()
		s.heard.Store(s.tick.Load())
		buffer := bodies.Get().(*[]byte) //nolint:errcheck // only these are in the pool
		n, err := fill(r, buffer)
		if err == nil {
			err = decodeFrame((*buffer)[:n], &f)
		}
		if err == nil {
			s.take(&f, now)
		}
		bodies.Put(buffer)
		if err != nil {
			return err
		}
	}
}

// fill reads all of r into the buffer, which it lets grow.
func fill(r io.Reader, buffer *[]byte) (n int, err error) {
	for {
		if n == len(*buffer) {
			*buffer = append(*buffer, make([]byte, n)...)
		}
		m, err := r.Read((*buffer)[n:])
		n += m
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func (s *socket) take(f *frame, now time.Time) {
	switch f.kind {
	case kindEntry:
		s.to.pushed(s, &f.entry, now)
	case kindReply, kindError, kindWelcome:
		s.mu.Lock()
		p, ok := s.open[f.id]
		delete(s.open, f.id)
		s.mu.Unlock()
		if ok {
			p.settled(f, now)
		}
	case kindResync:
		s.to.resync(s)
	case kindOther:
	}
}

func (s *socket) settle(p pending, f *frame, err error) {
	if p.fn != nil {
		p.fn(f, err)
		return
	}
	p.talk.unanswered(p.counter)
}

// settled hands an answer to whoever waits for it.
func (p pending) settled(f *frame, now time.Time) {
	if p.fn != nil {
		p.fn(f, nil)
		return
	}
	p.talk.answered(p.counter, f, now)
}

// begin writes a frame that encode makes from a new id, and remembers who waits. An error
// means that the connection has ended; then nobody is told.
func (s *socket) begin(p pending, encode func(w *writer, id uint32) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return errGone
	}
	s.nextID++
	if s.open == nil {
		s.open = make(map[uint32]pending, 4)
	}
	s.open[s.nextID] = p
	if err := s.ws.WriteMessage(websocket.BinaryMessage, encode(&s.write, s.nextID)); err != nil {
		delete(s.open, s.nextID)
		_ = s.ws.Close() // the reader sees it and ends
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// call makes a call and waits for its answer, off the path of messages.
func (s *socket) call(ctx context.Context, procedure string, req, res proto.Message) error {
	body, err := s.callRaw(ctx, procedure, req)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(body, res); err != nil {
		return errFrame
	}
	return nil
}

// callRaw is call with the answer as it came.
func (s *socket) callRaw(ctx context.Context, procedure string, req proto.Message) ([]byte, error) {
	request, err := proto.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", procedure, err)
	}
	return s.ask(ctx, func(w *writer, id uint32) []byte { return w.callFrame(id, procedure, "", request) })
}

// ask sends a frame and waits for its reply.
func (s *socket) ask(ctx context.Context, encode func(w *writer, id uint32) []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body []byte // set before the answer is told
	answer := make(chan error, 1)
	fn := func(f *frame, err error) {
		if err == nil && f.kind == kindError {
			err = decodeFault(f.body)
		}
		if err == nil {
			body = bytes.Clone(f.body)
		}
		answer <- err
	}
	if err := s.begin(pending{fn: fn}, encode); err != nil {
		return nil, err
	}
	select {
	case err := <-answer:
		return body, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// renew prolongs the connection by a newer token; told hears how it went.
func (s *socket) renew(token string, expires time.Time, told func(error)) {
	err := s.begin(pending{fn: func(f *frame, err error) {
		if err == nil && f.kind == kindError {
			err = decodeFault(f.body)
		}
		if err == nil {
			s.expires.Store(expires.Unix())
		}
		told(err)
	}}, func(w *writer, id uint32) []byte { return w.authenticate(id, token) })
	if err != nil {
		told(err)
	}
}

// end closes the connection in good order; its reader then returns.
func (s *socket) end() {
	message := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = s.ws.WriteControl(websocket.CloseMessage, message, time.Now().Add(time.Second)) // the peer may be gone
	_ = s.ws.SetReadDeadline(time.Now().Add(3 * time.Second))                           // for its close frame
}

// fault is an error that the server answered.
type fault struct {
	Code, Reason string
	RetryAfter   time.Duration
	told         bool // RetryAfter was there
}

func (f *fault) Error() string { return "the server answers " + f.Code + " " + f.Reason }

func decodeFault(body []byte) error {
	var e realtimev1.Error
	if err := proto.Unmarshal(body, &e); err != nil {
		return errFrame
	}
	return &fault{
		Code: e.GetCode(), Reason: trimReason(e.GetInfo().GetReason().String()),
		RetryAfter: e.GetInfo().GetRetryAfter().AsDuration(), told: e.GetInfo().GetRetryAfter() != nil,
	}
}
