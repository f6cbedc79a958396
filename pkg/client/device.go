package client

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const (
	// backoffBase and backoffCap bound the full jitter between two tries to connect
	// or to repair: a random time up to base·2^tries, at most the cap.
	backoffBase = 100 * time.Millisecond
	backoffCap  = 20 * time.Second
	// resendCap bounds the one between two tries to send over a connection that
	// stands: somebody looks at that message, and a server that needs longer says so.
	resendCap = 5 * time.Second
	// repairTimeout bounds one Sync or ListEvents.
	repairTimeout = 15 * time.Second
	// tryTimeout bounds one try to send, unless the device is told otherwise.
	tryTimeout = 5 * time.Second
	// retryRenewal is the pause after a renewal that failed.
	retryRenewal = 5 * time.Second
	// askAgain is when those are asked for again whose presence was not known.
	askAgain = 30 * time.Second
	// eventsPage is how many entries one ListEvents asks for, the most it gives.
	eventsPage = 200
)

// DeviceConfig is what a device needs beyond its connections.
type DeviceConfig struct {
	Config
	// OnEntry gets every entry of every conversation of the person, once and in
	// order of seq, from the conversation's beginning. On the device's goroutine.
	OnEntry func(*messagingv1.Entry)
	// OnPresence gets the presence of those who are watched (Watch): as it is after
	// each connect, and each change. On the device's goroutine.
	OnPresence func(*realtimev1.Presence)
	// OnTyping gets who writes and until when, which may be over already. On the
	// reader's goroutine, like OnPush.
	OnTyping func(*messagingv1.Typing)
	// OnReset tells that the server's data is other than it was (a restored
	// database): what OnEntry gave before is void, and it begins anew. On the
	// device's goroutine.
	OnReset func()
	// DropPush may lose a push before anybody sees it, for tests of the repair.
	DropPush func(*realtimev1.Push) bool
	// IdleInterval replaces the server's advice for how long to hear nothing before
	// syncing. 0: the advice.
	IdleInterval time.Duration
	// ReconnectCap bounds the random pause between two tries to connect. 0: 20 s.
	ReconnectCap time.Duration
	// TryTimeout bounds one try of Send: what hangs is sent again, with the same
	// client id. 0: 5 s.
	TryTimeout time.Duration
}

// Device keeps one person's conversations right on one device. It reconnects
// with full jitter, syncs after each connect, after Resync and after silence,
// and fills holes. Run drives it; Send may be called from anywhere.
type Device struct {
	cfg DeviceConfig

	mu        sync.Mutex
	conn      *Conn         // nil while there is none
	connected chan struct{} // closed while there is one
	inbox     []*messagingv1.Entry
	resync    bool
	watched   []string               // whom the screen shows
	rewatch   bool                   // the server has to be told
	seen      []*realtimev1.Presence // pushed, not yet given to OnPresence
	wake      chan struct{}          // of size one: something is in the inbox

	// Owned by Run's goroutine.
	cursor string
	have   map[string]int64 // conversation → last seq accepted
	shown  map[string]int64 // person → version of the presence given out
}

// NewDevice returns a device that knows nothing yet.
func NewDevice(cfg DeviceConfig) *Device {
	if cfg.ReconnectCap <= 0 {
		cfg.ReconnectCap = backoffCap
	}
	return &Device{cfg: cfg, connected: make(chan struct{}), wake: make(chan struct{}, 1), have: map[string]int64{}, shown: map[string]int64{}}
}

// Run connects and keeps connected until ctx ends; it returns ctx's error, or
// the first error that no retry can mend (the session is over).
func (d *Device) Run(ctx context.Context) error {
	tries := 0
	for {
		conn, err := d.connect(ctx)
		if err == nil {
			tries = 0
			err = d.follow(ctx, conn)
			d.detach(conn)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if sessionOver(err) {
			return err
		}
		wait := min(jitter(tries), d.cfg.ReconnectCap)
		var closed *CloseError
		if errors.As(err, &closed) && closed.ReconnectAfter > 0 {
			wait = closed.ReconnectAfter + wait
		}
		tries++
		if !clock.Pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// connect dials and makes the connection available to Send.
func (d *Device) connect(ctx context.Context) (*Conn, error) {
	cfg := d.cfg.Config
	cfg.OnPush = d.receive
	conn, err := Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = conn
	d.resync = true // subscribed by now: what Sync does not tell, a push will
	d.rewatch = len(d.watched) > 0
	d.seen = nil
	close(d.connected)
	return conn, nil
}

func (d *Device) detach(conn *Conn) {
	conn.Cut()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = nil
	d.connected = make(chan struct{})
}

// receive is the reader's callback: it only notes what came.
func (d *Device) receive(push *realtimev1.Push) {
	if push != nil && d.cfg.DropPush != nil && d.cfg.DropPush(push) {
		return
	}
	if d.cfg.OnPush != nil {
		d.cfg.OnPush(push)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case push == nil:
		d.resync = true
		d.rewatch = len(d.watched) > 0
	case push.GetPresence() != nil:
		d.seen = append(d.seen, push.GetPresence())
	case push.GetTyping() != nil:
		if d.cfg.OnTyping != nil {
			d.cfg.OnTyping(push.GetTyping())
		}
		return
	case push.GetEntry() != nil:
		d.inbox = append(d.inbox, push.GetEntry())
	case push.GetConversation() != nil:
		d.inbox = append(d.inbox, &messagingv1.Entry{
			ConversationId: push.GetConversation().GetId(), Seq: push.GetConversation().GetHeadSeq() + 1, // a hole up to its head
		})
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// follow repairs and applies until the connection ends.
func (d *Device) follow(ctx context.Context, conn *Conn) error {
	idle := d.cfg.IdleInterval
	if idle == 0 {
		idle = idleOf(conn.Welcome())
	}
	timer := time.NewTimer(spread(idle))
	defer timer.Stop()
	renewal := time.NewTimer(renewIn(conn.Welcome()))
	defer renewal.Stop()
	unknown := time.NewTimer(0)
	defer unknown.Stop()
	<-unknown.C
	for {
		if d.settleWatches(ctx, conn) {
			unknown.Reset(spread(askAgain))
		}
		if err := d.settle(ctx, conn); err != nil {
			if conn.Err() != nil {
				return conn.Err()
			}
			// The connection lives, a service behind it does not: try again soon.
			if !clock.Pause(ctx, jitter(3)) {
				return ctx.Err()
			}
			d.demandSync()
			continue
		}
		select {
		case <-d.wake:
			timer.Reset(spread(idle))
		case <-timer.C:
			timer.Reset(spread(idle))
			d.demandSync()
		case <-renewal.C:
			renewal.Reset(d.renew(ctx, conn))
		case <-unknown.C:
			d.demandWatch()
		case <-conn.Done():
			return conn.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// renewIn is when to bring a newer token: at four fifths of what is left of the
// present one, by the server's own clock.
func renewIn(w *realtimev1.Welcome) time.Duration {
	left := w.GetTokenExpiresAt().AsTime().Sub(w.GetServerTime().AsTime())
	return max(left/5*4, time.Second)
}

// idleOf is the server's advice for how long to hear nothing before syncing.
func idleOf(w *realtimev1.Welcome) time.Duration {
	if advice := w.GetIdleInterval().AsDuration(); advice > 0 {
		return advice
	}
	return 2 * time.Minute
}

// renew prolongs the connection and returns when to do it again. A failure is
// left to the server, which closes at the end of the old token.
func (d *Device) renew(ctx context.Context, conn *Conn) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	raw, err := d.cfg.Token(ctx)
	if err != nil {
		return retryRenewal
	}
	welcome, err := conn.Renew(ctx, raw)
	if err != nil {
		return retryRenewal
	}
	return renewIn(welcome)
}

func (d *Device) demandSync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resync = true
}

// settle does all that is due: Sync if demanded, then what was pushed.
func (d *Device) settle(ctx context.Context, conn *Conn) error {
	for {
		d.mu.Lock()
		entries, resync := d.inbox, d.resync
		d.inbox, d.resync = nil, false
		d.mu.Unlock()
		if len(entries) == 0 && !resync {
			return nil
		}
		if resync {
			if err := d.sync(ctx, conn); err != nil {
				d.demandSync()
				return err
			}
		}
		for _, e := range entries {
			if err := d.apply(ctx, conn, e); err != nil {
				d.demandSync() // what is left of entries will be told again
				return err
			}
		}
	}
}

func (d *Device) sync(ctx context.Context, conn *Conn) error {
	for {
		var res messagingv1.SyncResponse
		if err := call(ctx, conn, messagingv1connect.MessagingServiceSyncProcedure, &messagingv1.SyncRequest{Cursor: d.cursor}, &res); err != nil {
			return err
		}
		if res.GetReset_() {
			d.forget()
		}
		for _, c := range res.GetConversations() {
			if c.GetHeadSeq() <= d.have[c.GetId()] {
				continue
			}
			if err := d.fill(ctx, conn, c.GetId()); err != nil {
				return err
			}
		}
		d.cursor = res.GetNextCursor()
		if !res.GetHasMore() {
			return nil
		}
	}
}

// apply accepts the next entry of a conversation, ignores an old one, and fills
// the hole before a later one.
func (d *Device) apply(ctx context.Context, conn *Conn, e *messagingv1.Entry) error {
	switch have := d.have[e.GetConversationId()]; {
	case e.GetSeq() <= have:
		return nil
	case e.GetSeq() == have+1 && e.GetBody() != nil:
		d.accept(e)
		return nil
	default:
		return d.fill(ctx, conn, e.GetConversationId())
	}
}

// forget drops what the server's data no longer agrees with.
func (d *Device) forget() {
	d.cursor, d.have = "", map[string]int64{}
	if d.cfg.OnReset != nil {
		d.cfg.OnReset()
	}
}

// fill asks for what follows the last entry, up to the conversation's head.
func (d *Device) fill(ctx context.Context, conn *Conn, conversation string) error {
	for {
		var res messagingv1.ListEventsResponse
		req := &messagingv1.ListEventsRequest{ConversationId: conversation, AfterSeq: d.have[conversation], Limit: eventsPage}
		if err := call(ctx, conn, messagingv1connect.MessagingServiceListEventsProcedure, req, &res); err != nil {
			if rpc.ReasonOf(err) == errorv1.Reason_REASON_RESET_REQUIRED {
				d.forget() // and Sync from the beginning, as after any failure
			}
			return err
		}
		for _, e := range res.GetEntries() {
			if e.GetSeq() > d.have[conversation] {
				d.accept(e)
			}
		}
		if !res.GetHasMore() || len(res.GetEntries()) == 0 {
			return nil
		}
	}
}

func (d *Device) accept(e *messagingv1.Entry) {
	d.have[e.GetConversationId()] = e.GetSeq()
	if d.cfg.OnEntry != nil {
		d.cfg.OnEntry(e)
	}
}

// Cut drops the present connection, if any, as a lost network does.
func (d *Device) Cut() {
	d.mu.Lock()
	conn := d.conn
	d.mu.Unlock()
	if conn != nil {
		conn.Cut()
	}
}

// Connected waits until the device has a connection and returns it.
func (d *Device) Connected(ctx context.Context) (*Conn, error) {
	for {
		d.mu.Lock()
		conn, connected := d.conn, d.connected
		d.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-connected:
		case <-ctx.Done():
			return nil, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
		}
	}
}

// Send sends a message in its conversation's lane and tries again, with the same
// client id, until the server has said yes or no or ctx ends. retried, if not
// nil, is told of each further try.
func (d *Device) Send(ctx context.Context, req *messagingv1.SendMessageRequest, retried func()) (*messagingv1.SendMessageResponse, error) {
	for tries := 0; ; tries++ {
		conn, err := d.Connected(ctx)
		if err != nil {
			return nil, err
		}
		res := &messagingv1.SendMessageResponse{}
		err = d.sendOnce(ctx, conn, req, res)
		if err == nil {
			return res, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if !retryable(err) || !clock.Pause(ctx, resendPause(err, tries)) {
			return nil, err
		}
		if retried != nil {
			retried()
		}
	}
}

// sendOnce is one try, which leaves time for others: a server that hangs must not
// use up the patience of the caller.
func (d *Device) sendOnce(ctx context.Context, conn *Conn, req *messagingv1.SendMessageRequest, res *messagingv1.SendMessageResponse) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(d.cfg.TryTimeout, tryTimeout))
	defer cancel()
	return conn.Call(ctx, messagingv1connect.MessagingServiceSendMessageProcedure, req.GetConversationId(), req, res)
}

func call(ctx context.Context, conn *Conn, procedure string, req, res proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	return conn.Call(ctx, procedure, "", req, res)
}

// spread keeps many idle clients from syncing at the same moment: 75 % to 100 %
// of the interval.
func spread(d time.Duration) time.Duration { return d - rand.N(d/4+1) }

// resendPause is how long a message waits that was not taken.
func resendPause(err error, tries int) time.Duration {
	return max(retryAfter(err), min(jitter(tries), resendCap))
}

// jitter is full jitter: a random time up to base·2^tries, at most the cap.
func jitter(tries int) time.Duration {
	return rand.N(min(backoffBase<<min(tries, 10), backoffCap))
}
