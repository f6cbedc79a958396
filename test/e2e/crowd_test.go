package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/history"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// crowd is some people, each with two devices, and a conversation of each two.
type crowd struct {
	people  []*person
	devices []*device
	talks   []talk
	rec     *history.Recorder

	acked atomic.Int64
}

type talk struct {
	id      string
	members [2]*person
	devices []*device
}

// gather registers a crowd and brings its devices online, spread over the
// gateways: each person has one device on each of two.
func gather(t *testing.T, sys *system.System, people int, o deviceOptions) *crowd {
	t.Helper()
	c := &crowd{rec: history.NewRecorder(t.Name())}
	byPerson := map[*person][]*device{}
	for i := range people {
		p := register(t, sys, i)
		c.people = append(c.people, p)
		for j, name := range []string{"phone", "laptop"} {
			o.gateway = i + j
			d := p.connect(t, name, o)
			byPerson[p] = append(byPerson[p], d)
			c.devices = append(c.devices, d)
		}
	}
	for i, a := range c.people {
		for _, b := range c.people[:i] {
			devices := append(append([]*device(nil), byPerson[a]...), byPerson[b]...)
			c.talks = append(c.talks, talk{id: a.talkTo(t, b), members: [2]*person{a, b}, devices: devices})
		}
	}
	return c
}

// load is a crowd that talks.
type load struct {
	crowd *crowd
	stop  chan struct{}
	done  sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

// pace is the time between two messages of one device in one conversation.
const pace = 50 * time.Millisecond

// talk lets every device of the crowd send in all of its conversations until the
// load is ended.
func (c *crowd) talk(t *testing.T) *load {
	t.Helper()
	l := &load{crowd: c, stop: make(chan struct{})}
	for _, talk := range c.talks {
		for _, d := range talk.devices {
			l.done.Go(func() { l.send(t.Context(), d, talk.id) })
		}
	}
	t.Cleanup(l.done.Wait) // the test's context has ended by then
	return l
}

func (l *load) send(ctx context.Context, d *device, conversation string) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-l.stop:
			return
		case <-ctx.Done():
			return
		}
		if err := l.crowd.send(ctx, d, conversation, text(d.name, n)); err != nil && ctx.Err() == nil {
			l.mu.Lock()
			l.errs = append(l.errs, fmt.Errorf("%s: %w", d.name, err))
			l.mu.Unlock()
		}
	}
}

// send sends one message, tries again until its outcome is known, and records all
// of it.
func (c *crowd) send(ctx context.Context, d *device, conversation, words string) error {
	ctx, cancel := context.WithTimeout(ctx, eventually)
	defer cancel()
	id, err := freshID()
	if err != nil {
		return err
	}
	pending := c.rec.Invoke(history.Send{
		Conversation: conversation, Sender: d.owner.id, ClientID: id,
		Device: d.name, Lane: conversation, Content: history.Hash(words),
	})
	req := &messagingv1.SendMessageRequest{ConversationId: conversation, ClientMessageId: id, Text: words}
	res, err := d.Send(ctx, req, pending.Retry)
	if err == nil {
		pending.Ack(res.GetSeq())
		c.acked.Add(1)
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

// await waits until the crowd has got n further acknowledgements.
func (l *load) await(t *testing.T, n int64) {
	t.Helper()
	from := l.crowd.acked.Load()
	require.Eventually(t, func() bool { return l.crowd.acked.Load() >= from+n }, eventually, poll,
		"%d more messages are acknowledged", n)
}

// end lets the crowd finish what it is sending. In the end every message must
// have been accepted: the crowd is allowed all that it does.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		l.done.Wait()
	}()
	select {
	case <-finished:
	case <-time.After(eventually + soon):
		require.FailNow(t, "sends do not end")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	require.NoError(t, errors.Join(l.errs...), "every message is accepted in the end")
}

// settle waits until everything is quiet and every device shows all of its
// conversations, and records that: what the members read from the server and what
// the devices showed.
func (c *crowd) settle(t *testing.T, within time.Duration) {
	t.Helper()
	for _, talk := range c.talks {
		for i, member := range talk.members {
			entries := member.readLog(t, i, talk.id)
			c.rec.Read(history.Log{Conversation: talk.id, Member: member.id, Entries: entries})
			for _, d := range talk.devices {
				d.awaitHead(t, talk.id, int64(len(entries)), within)
			}
		}
		for _, d := range talk.devices {
			for _, e := range d.entries(talk.id) {
				c.rec.Saw(talk.id, d.name, e)
			}
		}
	}
}

// judge settles and requires that every promise was kept, over at least some
// messages.
func (c *crowd) judge(t *testing.T, within time.Duration) {
	t.Helper()
	c.settle(t, within)
	h := c.rec.History()
	require.Empty(t, history.Check(h), "broken promises")
	require.NotEmpty(t, h.Sends)
	require.Len(t, h.Views, 4*len(c.talks), "every device showed every conversation")
	t.Logf("%d messages in %d conversations, %d devices: nothing lost, nothing twice, in order", len(h.Sends), len(c.talks), len(c.devices))
}
