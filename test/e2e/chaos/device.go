package chaos

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/history"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// triedFor bounds one try to send: what hangs at a frozen replica is sent again,
// with the same client id.
const triedFor = 4 * time.Second

// device is a person's device in one conversation, with what it showed.
type device struct {
	*client.Device

	name  string
	owner *person
	// gateway is the number of its own; away says that it is at another.
	gateway int
	away    atomic.Bool
	// marking: a watermark is on its way.
	marking atomic.Bool

	mu      sync.Mutex
	shown   []history.Entry
	resyncs int
	// proof is the newest message that was acknowledged: when it was sent for the
	// first time, and where it stands.
	provenAt time.Time
	proven   int64
}

// newDevice makes a device that calls at the gateway with that number, or at
// another one while that is away, as behind a balancer.
func newDevice(owner *person, name, conversation string, gateway int, intern func(string) string, resets *atomic.Int64) *device {
	d := &device{name: owner.username + " " + name, owner: owner, gateway: gateway % len(owner.gateways)}
	d.Device = client.NewDevice(client.DeviceConfig{
		Config: client.Config{
			URL: "ws://" + owner.gateways[d.gateway] + "/v1/ws", Token: owner.token,
			OnPush: d.pushed, NetDial: d.dial,
		},
		OnEntry: func(e *messagingv1.Entry) {
			if e.GetConversationId() != conversation {
				return
			}
			entry := entryOf(e, intern)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.shown = append(d.shown, entry)
		},
		OnReset: func() {
			resets.Add(1)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.shown = nil
		},
		ReconnectCap: 2 * time.Second, TryTimeout: triedFor,
	})
	return d
}

func (d *device) pushed(push *realtimev1.Push) {
	if push == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.resyncs++
	}
}

// dial takes another gateway when the usual one refuses.
func (d *device) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	d.away.Store(err != nil)
	if err == nil {
		return conn, nil
	}
	for _, other := range d.owner.gateways {
		if conn, oerr := dialer.DialContext(ctx, network, other); oerr == nil {
			return conn, nil
		}
	}
	return nil, err
}

// home has a device that went to another gateway come back, so that the next fault
// finds people on both, as a balancer's new connections do in time. It says
// whether the device is there.
func (d *device) home() bool {
	if d.away.Load() {
		d.Cut()
		return false
	}
	return true
}

// mark moves a watermark of the device's owner.
func (d *device) mark(ctx context.Context, conversation string, seq int64, read bool) error {
	ctx, cancel := context.WithTimeout(ctx, triedFor)
	defer cancel()
	conn, err := d.Connected(ctx)
	if err != nil {
		return err
	}
	if read {
		req := &messagingv1.MarkReadRequest{ConversationId: conversation, Seq: seq}
		return conn.Call(ctx, messagingv1connect.MessagingServiceMarkReadProcedure, "", req, &messagingv1.MarkReadResponse{})
	}
	req := &messagingv1.MarkDeliveredRequest{ConversationId: conversation, Seq: seq}
	return conn.Call(ctx, messagingv1connect.MessagingServiceMarkDeliveredProcedure, "", req, &messagingv1.MarkDeliveredResponse{})
}

// acked notes an acknowledgement.
func (d *device) acked(invoked time.Time, seq int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.provenAt, d.proven = invoked, seq
}

// provenSince is the seq of a message that was sent and acknowledged after since.
func (d *device) provenSince(since time.Time) (seq int64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proven, d.provenAt.After(since)
}

// head is the seq of the last entry that the device showed.
func (d *device) head() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.shown) == 0 {
		return 0
	}
	return d.shown[len(d.shown)-1].Seq
}

// ended is a context that waits for nothing.
var ended = func() context.Context {
	ctx, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	cancel()
	return ctx
}()

// state says in a word whether the device has a connection.
func (d *device) state() string {
	if _, err := d.Connected(ended); err != nil {
		return "not connected"
	}
	return "connected"
}

// view is all that the device showed.
func (d *device) view() []history.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]history.Entry(nil), d.shown...)
}
