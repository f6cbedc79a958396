package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/history"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// atOnce is how many people are registered, or read their logs, at the same time.
const atOnce = 8

// talk is the conversation of two people with two devices each.
type talk struct {
	id      string
	members [2]*person
	devices []*device
	// logs is what each member has read of it.
	logs [2][]history.Entry
}

// crowd talks, steadily, until the test ends.
type crowd struct {
	sys   *system.System
	talks []*talk
	rec   *history.Recorder

	acked, retried atomic.Int64
	// resets are devices that were told to forget what they had; marked are watermarks that were moved.
	resets, marked atomic.Int64
	// lastAck and longest measure the silence: Unix nanoseconds of the newest
	// acknowledgement of anybody, and the longest time between two.
	lastAck, longest atomic.Int64

	// gate is held by everyone who is sending; whoever locks it has silence.
	gate sync.RWMutex

	strings sync.Map // interned
	marks   sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

// gather registers pairs of people and brings their devices online. Each person
// has one device on each of two gateways.
func gather(t testing.TB, sys *system.System, pairs int) (*crowd, error) {
	c := &crowd{sys: sys, rec: history.NewRecorder(t.Name()), talks: make([]*talk, pairs)}
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(atOnce)
	for i := range c.talks {
		group.Go(func() (err error) {
			c.talks[i], err = c.pair(ctx)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var running sync.WaitGroup
	for _, d := range c.devices() {
		running.Go(func() { _ = d.Run(t.Context()) }) // it ends with the test
	}
	t.Cleanup(running.Wait)
	return c, nil
}

func (c *crowd) pair(ctx context.Context) (*talk, error) {
	k := &talk{}
	for i := range k.members {
		p, err := register(ctx, c.sys.Gateways)
		if err != nil {
			return nil, err
		}
		k.members[i] = p
	}
	var err error
	if k.id, err = k.members[0].talkTo(ctx, k.members[1]); err != nil {
		return nil, err
	}
	for _, p := range k.members {
		for gateway, name := range []string{"phone", "laptop"} {
			k.devices = append(k.devices, newDevice(p, name, k.id, gateway, c.intern, &c.resets))
		}
	}
	return k, nil
}

func (c *crowd) devices() []*device {
	var all []*device
	for _, k := range c.talks {
		all = append(all, k.devices...)
	}
	return all
}

// intern returns the one string that is equal to s.
func (c *crowd) intern(s string) string {
	one, _ := c.strings.LoadOrStore(s, s)
	text, _ := one.(string)
	return text
}

// start lets every device send, all together rate messages a second, until the
// test ends.
func (c *crowd) start(t testing.TB, rate int) {
	devices := len(c.talks) * 4
	pace := time.Duration(devices) * time.Second / time.Duration(rate)
	c.lastAck.Store(time.Now().UnixNano())
	var sending sync.WaitGroup
	for _, k := range c.talks {
		for _, d := range k.devices {
			sending.Go(func() { c.send(t.Context(), k, d, pace) })
		}
	}
	t.Cleanup(func() { // the test's context has ended by then
		sending.Wait()
		c.marks.Wait()
	})
}

// send sends a message each pace, from a random moment on. A message that takes
// longer delays the next: the load is bounded, also after an outage.
func (c *crowd) send(ctx context.Context, k *talk, d *device, pace time.Duration) {
	if !pause(ctx, rand.N(pace)) {
		return
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c.gate.RLock()
		err := c.say(ctx, k, d, fmt.Sprintf("%s says %d", d.name, n))
		c.gate.RUnlock()
		c.failed(ctx, d, err)
		if n%2 == 1 { // half as often as there are messages, as phones gather them
			c.mark(ctx, k, d, n%4 == 1)
		}
	}
}

// mark has a device say what it showed, or what was read, beside its messages and one at a time. It is not tried again: the
// next one says more.
func (c *crowd) mark(ctx context.Context, k *talk, d *device, read bool) {
	seq := d.head()
	if seq == 0 || !d.marking.CompareAndSwap(false, true) {
		return
	}
	c.marks.Go(func() {
		defer d.marking.Store(false)
		c.gate.RLock()
		defer c.gate.RUnlock()
		err := d.mark(ctx, k.id, seq, read)
		if err == nil {
			c.marked.Add(1)
		} else if !passes(err) {
			c.failed(ctx, d, fmt.Errorf("mark: %w", err))
		}
	})
}

// failed notes what went wrong for good, unless the test ends.
func (c *crowd) failed(ctx context.Context, d *device, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, fmt.Errorf("%s: %w", d.name, err))
}

// say sends one message, tries again until its outcome is known, and records all
// of it.
func (c *crowd) say(ctx context.Context, k *talk, d *device, words string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an id: %w", err)
	}
	invoked := time.Now()
	pending := c.rec.Invoke(history.Send{
		Conversation: k.id, Sender: d.owner.id, ClientID: c.intern(id.String()),
		Device: d.name, Lane: k.id, Content: history.Hash(words),
	})
	res, err := d.Send(ctx, &messagingv1.SendMessageRequest{ConversationId: k.id, ClientMessageId: id.String(), Text: words}, func() {
		pending.Retry()
		c.retried.Add(1)
	})
	if err == nil {
		pending.Ack(res.GetSeq())
		d.acked(invoked, res.GetSeq())
		c.answered()
		return nil
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists,
		connect.CodePermissionDenied, connect.CodeFailedPrecondition:
		pending.Refuse()
	default: // the outcome is open
	}
	return err
}

// answered counts an acknowledgement, and the silence before it.
func (c *crowd) answered() {
	c.acked.Add(1)
	now := time.Now().UnixNano()
	silence := now - c.lastAck.Swap(now)
	for {
		longest := c.longest.Load()
		if silence <= longest || c.longest.CompareAndSwap(longest, silence) {
			return
		}
	}
}

// refusals are the sends that failed in the end, and forgets them.
func (c *crowd) refusals() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := errors.Join(c.errs...)
	c.errs = nil
	return err
}

// serves says whether the system serves everybody since a moment: each device has
// sent a message after it and got its acknowledgement, and all devices of the
// conversation show it.
func (c *crowd) serves(since time.Time) bool { return c.gaps(since) == gaps{} }

// upToDate says whether every device shows every message that was acknowledged to
// anybody.
func (c *crowd) upToDate() bool { return c.gaps(time.Time{}).behind == 0 }

// gaps are how many devices got no acknowledgement of a message that they sent
// after a moment, and how many do not show what was acknowledged to others.
type gaps struct {
	unproven, behind int
	example          string
}

func (g gaps) String() string {
	text := fmt.Sprintf("%d devices got no acknowledgement, %d do not show what was acknowledged", g.unproven, g.behind)
	if g.example != "" {
		text += ", such as " + g.example
	}
	return text
}

func (c *crowd) gaps(since time.Time) (g gaps) {
	for _, k := range c.talks {
		var head int64
		for _, d := range k.devices {
			seq, ok := d.provenSince(since)
			if !ok {
				g.unproven++
				g.example = d.name + " (" + d.state() + ")"
			}
			head = max(head, seq)
		}
		for _, d := range k.devices {
			if d.head() < head {
				g.behind++
				g.example = fmt.Sprintf("%s (%s), at %d of %d", d.name, d.state(), d.head(), head)
			}
		}
	}
	return g
}

// home waits until every device is at its own gateway.
func (c *crowd) home(ctx context.Context) bool {
	return until(ctx, func() bool {
		all := true
		for _, k := range c.talks {
			for _, d := range k.devices {
				all = d.home() && all
			}
		}
		return all
	})
}

// unserved is how many devices have no acknowledgement of a message that they sent after a moment. Those of a gateway
// that stands still do not count.
func (c *crowd) unserved(since time.Time, frozen string) int {
	n := 0
	for _, k := range c.talks {
		for _, d := range k.devices {
			if _, ok := d.provenSince(since); !ok && frozen != fmt.Sprintf("gateway-%d", d.gateway+1) {
				n++
			}
		}
	}
	return n
}

// talksSince says whether in each conversation somebody has sent a message after a
// moment and got its acknowledgement.
func (c *crowd) talksSince(since time.Time) bool {
	for _, k := range c.talks {
		talks := false
		for _, d := range k.devices {
			_, ok := d.provenSince(since)
			talks = talks || ok
		}
		if !talks {
			return false
		}
	}
	return true
}

// quiet stops the load, waits until every device shows all, and runs judge.
func (c *crowd) quiet(ctx context.Context, judge func() error) error {
	c.gate.Lock()
	defer func() {
		c.lastAck.Store(time.Now().UnixNano()) // this silence is ours
		c.gate.Unlock()
	}()
	if err := c.readLogs(ctx); err != nil {
		return err
	}
	for _, k := range c.talks {
		for _, d := range k.devices {
			if !until(ctx, func() bool { return d.head() >= int64(len(k.logs[0])) }) {
				return fmt.Errorf("%s shows seq %d of %d, and does not go on", d.name, d.head(), len(k.logs[0]))
			}
		}
	}
	return judge()
}

// silently stops the load in the middle of a fault, so that the last messages of
// each conversation have no successor, mends the fault, and waits.
func (c *crowd) silently(mend func(), wait func(mended time.Time) error) (mended time.Time, err error) {
	c.gate.Lock()
	defer func() {
		c.lastAck.Store(time.Now().UnixNano())
		c.gate.Unlock()
	}()
	mended = time.Now()
	mend()
	return mended, wait(mended)
}

// until polls a condition; false says that it did not come true in time.
func until(ctx context.Context, condition func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
