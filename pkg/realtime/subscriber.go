package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
)

// Loss says why a subscriber may have missed messages.
type Loss string

const (
	// LossReconnect: the connection was down; what was published then is gone.
	LossReconnect Loss = "reconnect"
	// LossSlow: messages came faster than they were handled and were dropped.
	LossSlow Loss = "slow_consumer"
	// LossLate: the server confirmed a subscription only after Flush gave up, or when
	// the loopback had ended.
	LossLate Loss = "late_subscription"
)

// ErrAway is returned by Flush while NATS cannot be reached. The subscriptions
// are made when it is back, and a Loss follows then.
var ErrAway = errors.New("the bus is away")

const (
	// defaultBuffer holds a burst of some milliseconds at 500,000 messages a
	// second, the most that one connection delivers.
	defaultBuffer = 8192
	// checkEvery bounds how late a repeated drop or a late flush is told.
	checkEvery   = 500 * time.Millisecond
	flushTimeout = 2 * time.Second
)

// SubscriberConfig is what a hub hands over.
type SubscriberConfig struct {
	// Frame takes one message: the person and the binary ServerFrame. It runs on
	// a reader or, by the loopback, on the goroutine that pushes; in order for one
	// person, must not block and must not change the bytes; it may keep them. By the
	// loopback it also gets what is for people who are not subscribed.
	Frame func(user uuid.UUID, frame []byte)
	// Traced takes the messages whose trace is sampled, by the rules of Frame; nil:
	// Frame takes these too.
	Traced func(user uuid.UUID, frame []byte, origin Origin)
	// Loss is told that messages may have been missed for anybody subscribed. It
	// must not block.
	Loss func(Loss)
	// Readers is the number of channels and goroutines that take messages off
	// the connection; 0 means one per CPU, at most 8.
	Readers int
	// Buffer is how many messages each channel holds; 0 means 8192.
	Buffer int
	// Loopback carries pushes of the same process; nil unless NATS runs in it.
	Loopback *Loopback
}

// Subscriber follows the people who are connected to one gateway. It has one
// subscription per person, all of them on a few shared channels, and no goroutine
// per person. It is safe for concurrent use.
type Subscriber struct {
	conn     *nats.Conn
	log      *slog.Logger
	cfg      SubscriberConfig
	channels []chan *nats.Msg
	wake     chan struct{}
	closed   atomic.Bool
	// late is set when a Flush gave up: pushes between its SUB and the server's
	// taking it are lost without a trace unless a Loss is told afterwards.
	late atomic.Bool

	mu sync.Mutex
	// subs has nil for people whose pushes the loopback carries.
	subs map[uuid.UUID]*nats.Subscription
	// slow maps subscriptions that dropped to the number of drops already told.
	// The library reports only the first drop of a streak, we must tell the rest.
	slow map[*nats.Subscription]int
}

// NewSubscriber makes a subscriber on a connection that the caller owns. It hooks
// itself before the connection's error handler, which still gets every error.
func NewSubscriber(conn *nats.Conn, log *slog.Logger, cfg SubscriberConfig) *Subscriber {
	if cfg.Readers <= 0 {
		cfg.Readers = min(runtime.GOMAXPROCS(0), 8)
	}
	if cfg.Buffer <= 0 {
		cfg.Buffer = defaultBuffer
	}
	s := &Subscriber{
		conn: conn, log: log, cfg: cfg,
		wake: make(chan struct{}, 1),
		subs: make(map[uuid.UUID]*nats.Subscription),
		slow: make(map[*nats.Subscription]int),
	}
	for range cfg.Readers {
		s.channels = append(s.channels, make(chan *nats.Msg, cfg.Buffer))
	}
	next := conn.ErrorHandler()
	conn.SetErrorHandler(func(conn *nats.Conn, sub *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrSlowConsumer) && sub != nil {
			s.dropped(sub)
		}
		if next != nil {
			next(conn, sub, err)
		}
	})
	cfg.Loopback.attach(s)
	return s
}

// Subscribe starts to follow a person; a second call for the same person does
// nothing. The server has it for sure only after Flush.
func (s *Subscriber) Subscribe(user uuid.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.subs[user]; known {
		return nil
	}
	if s.cfg.Loopback.open() {
		s.subs[user] = nil
		return nil
	}
	return s.subscribeLocked(user)
}

func (s *Subscriber) subscribeLocked(user uuid.UUID) error {
	sub, err := s.conn.ChanSubscribe(Subject(user), s.channels[int(user[15])%len(s.channels)])
	if err != nil {
		return fmt.Errorf("subscribe user: %w", err)
	}
	s.subs[user] = sub
	return nil
}

// leaveLoopback subscribes on the bus all whose pushes the loopback carried. A Loss
// follows when the server has taken it.
func (s *Subscriber) leaveLoopback() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for user, sub := range s.subs {
		if sub != nil {
			continue
		}
		if err := s.subscribeLocked(user); err != nil {
			return err
		}
	}
	s.late.Store(true)
	return nil
}

// Unsubscribe stops following a person. Messages already received are still
// handed to Frame.
func (s *Subscriber) Unsubscribe(user uuid.UUID) {
	s.mu.Lock()
	sub := s.subs[user]
	delete(s.subs, user)
	delete(s.slow, sub)
	s.mu.Unlock()
	if sub == nil {
		return
	}
	// A closed connection has no subscriptions left: nothing to undo.
	if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		s.log.Debug("unsubscribe user", "error", err)
	}
}

// Flush returns when the server has taken every subscription made before. It
// waits two seconds at most, less if ctx ends. On an error the caller may go on:
// a Loss is told once the subscriptions stand. While the loopback carries pushes there
// is nothing to wait for.
func (s *Subscriber) Flush(ctx context.Context) error {
	if s.cfg.Loopback.open() {
		return nil
	}
	if !s.conn.IsConnected() {
		s.late.Store(true)
		return ErrAway
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := s.conn.FlushWithContext(ctx); err != nil {
		s.late.Store(true)
		return fmt.Errorf("flush subscriptions: %w", err)
	}
	return nil
}

// Ready returns nil while NATS is connected.
func (s *Subscriber) Ready(context.Context) error {
	if !s.conn.IsConnected() {
		return ErrAway
	}
	return nil
}

// Run hands messages and losses over until ctx ends, then drops all
// subscriptions. It returns nil.
func (s *Subscriber) Run(ctx context.Context) error {
	status := s.conn.StatusChanged(nats.CONNECTED)
	defer s.conn.RemoveStatusListener(status)
	group, ctx := errgroup.WithContext(ctx)
	for _, channel := range s.channels {
		group.Go(func() error {
			s.read(ctx, channel)
			return nil
		})
	}
	group.Go(func() error {
		s.watch(ctx, status)
		return nil
	})
	err := group.Wait()
	s.close()
	return err
}

func (s *Subscriber) read(ctx context.Context, channel chan *nats.Msg) {
	for {
		select {
		case <-ctx.Done():
			return
		case msg := <-channel:
			if user, ok := userOf(msg.Subject); ok {
				s.hand(ctx, user, msg.Data, msg.Header)
			}
		}
	}
}

// hand gives a message to whom it is for; those of sampled traces are few.
func (s *Subscriber) hand(ctx context.Context, user uuid.UUID, frame []byte, traced nats.Header) {
	if s.cfg.Traced != nil && len(traced) > 0 {
		if origin, ok := originOf(ctx, traced); ok {
			s.cfg.Traced(user, frame, origin)
			return
		}
	}
	s.cfg.Frame(user, frame)
}

// handAll is what the loopback calls.
func (s *Subscriber) handAll(ctx context.Context, users []uuid.UUID, frame []byte, traced nats.Header) {
	for _, user := range users {
		s.hand(ctx, user, frame, traced)
	}
}

// watch tells losses. A reconnect is told only after a flush: a client that
// synced before the server had the subscriptions again would miss what came
// between.
func (s *Subscriber) watch(ctx context.Context, status <-chan nats.Status) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	var reconnected, leaving bool
	ended := s.cfg.Loopback.done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
			ended, leaving = nil, true
		case <-status:
			reconnected = reconnected || !s.cfg.Loopback.open()
		case <-s.wake:
		case <-tick.C:
		}
		if leaving {
			err := s.leaveLoopback()
			if err != nil {
				s.log.ErrorContext(ctx, "people not subscribed, trying again", "error", err)
			}
			leaving = err != nil
		}
		if s.newDrops() {
			s.tell(LossSlow)
		}
		// Taken before the flush: whoever gives up during it sets it again.
		late := s.late.Swap(false)
		if (!reconnected && !late) || s.Flush(ctx) != nil {
			continue
		}
		if reconnected {
			s.tell(LossReconnect)
		} else {
			s.tell(LossLate)
		}
		reconnected = false
	}
}

func (s *Subscriber) tell(loss Loss) {
	s.log.Warn("pushes may have been lost", "cause", string(loss))
	if s.cfg.Loss != nil {
		s.cfg.Loss(loss)
	}
}

// dropped remembers a subscription of ours that lost a message and wakes watch.
func (s *Subscriber) dropped(sub *nats.Subscription) {
	user, ok := userOf(sub.Subject)
	if !ok || s.closed.Load() {
		return
	}
	s.mu.Lock()
	if s.subs[user] != sub {
		s.mu.Unlock()
		return
	}
	if _, known := s.slow[sub]; !known {
		s.slow[sub] = 0
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// newDrops is whether a slow subscription dropped more than was told before.
func (s *Subscriber) newDrops() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var more bool
	for sub, told := range s.slow {
		count, err := sub.Dropped()
		if err != nil {
			delete(s.slow, sub)
			continue
		}
		if count > told {
			s.slow[sub] = count
			more = true
		}
	}
	return more
}

func (s *Subscriber) close() {
	s.closed.Store(true)
	s.cfg.Loopback.detach()
	s.mu.Lock()
	subs := s.subs
	s.subs = make(map[uuid.UUID]*nats.Subscription)
	clear(s.slow)
	s.mu.Unlock()
	for _, sub := range subs {
		if sub == nil {
			continue
		}
		if err := sub.Unsubscribe(); err != nil {
			return // the connection is closed: the server has forgotten them
		}
	}
}
