package servicetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/realtime"
	barrierv1 "github.com/parleychat/parley/proto/gen/parley/barrier/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const (
	// awaitTimeout is far more than anything takes; it only bounds a failing test.
	awaitTimeout = 15 * time.Second
	fetchWait    = 100 * time.Millisecond
)

// Publish sends events in the name of a domain that is not under test, and
// returns when the stream has taken them. Listeners get them a little later. An
// event that is published again arrives again: it carries no id for the stream to
// tell doubles by, so that listeners can be shown one.
func (h *Harness) Publish(domain string, events ...*eventv1.Event) {
	h.t.Helper()
	_, err := h.Bus.EnsureStream(h.ctx(), domain)
	for _, ev := range events {
		if err == nil {
			err = h.publish(domain, ev)
		}
	}
	if err != nil {
		h.t.Fatalf("publish events of %s: %v", domain, err)
	}
}

func (h *Harness) publish(domain string, ev *eventv1.Event) error {
	if err := event.Check(ev); err != nil {
		return err
	}
	if err := event.Complete(h.ctx(), ev, h.clock.Now()); err != nil {
		return err
	}
	data, err := proto.Marshal(ev)
	if err != nil {
		return err
	}
	_, err = h.Bus.JetStream().Publish(h.ctx(), event.Subject(domain, ev.GetType()), data)
	return err
}

// Deliver publishes events one after the other and waits for each until listener
// has committed its effect: "user" is any listener of that service,
// "user/account.registered" just one.
func (h *Harness) Deliver(domain, listener string, events ...*eventv1.Event) {
	h.t.Helper()
	for _, ev := range events {
		barrier := h.Bus.NewBarrier(listener)
		h.Publish(domain, barrier.On(ev))
		propagation := barrier.Wait(h.ctx(), awaitTimeout)
		barrier.Close()
		if propagation != barrierv1.Propagation_PROPAGATION_COMPLETE {
			h.t.Fatalf("%s has not taken the event %s of %s", listener, ev.GetType(), ev.GetKey())
		}
	}
}

// Await returns the first event of that type, of all that the domain has ever
// published in this test, for which match is true; a nil match takes any.
func (h *Harness) Await(domain, typ string, match func(*eventv1.Event) bool) *eventv1.Event {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.ctx(), awaitTimeout)
	defer cancel()
	consumer := h.consumer(ctx, domain, typ)
	seen := 0
	for {
		ev, n := h.fetch(ctx, consumer, domain, match)
		if ev != nil {
			return ev
		}
		if seen += n; ctx.Err() != nil {
			h.t.Fatalf("no event %s of %s that matches, among %d", typ, domain, seen)
		}
	}
}

// fetch looks through the next events for one that matches, and counts those that
// do not. Its context ends the fetch also when the first one matches: otherwise a
// goroutine would stay for a second, longer than a search for leaks waits.
func (h *Harness) fetch(ctx context.Context, consumer jetstream.Consumer, domain string, match func(*eventv1.Event) bool) (*eventv1.Event, int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, fetchWait)
	defer cancel()
	batch, err := consumer.Fetch(64, jetstream.FetchContext(ctx))
	if ctx.Err() != nil {
		return nil, 0
	}
	if err != nil {
		h.t.Fatalf("read the events of %s: %v", domain, err)
	}
	seen := 0
	for msg := range batch.Messages() {
		seen++
		for _, ev := range h.decode(msg) {
			if match == nil || match(ev) {
				return ev, seen
			}
		}
	}
	return nil, seen
}

// Events returns all events of that type that a domain under test has published,
// in the order of the stream, after waiting until its outbox is empty. With it a
// test shows that something was told once, or not at all.
func (h *Harness) Events(domain, typ string) []*eventv1.Event {
	h.t.Helper()
	h.Settle(domain)
	ctx, cancel := context.WithTimeout(h.ctx(), awaitTimeout)
	defer cancel()
	consumer := h.consumer(ctx, domain, typ)
	info, err := consumer.Info(ctx)
	if err != nil {
		h.t.Fatalf("read the stream of %s: %v", domain, err)
	}
	var events []*eventv1.Event
	for left := info.NumPending; left > 0 && ctx.Err() == nil; {
		batch, err := consumer.Fetch(int(min(left, 256)), jetstream.FetchMaxWait(time.Second))
		if err != nil {
			h.t.Fatalf("read the events of %s: %v", domain, err)
		}
		for msg := range batch.Messages() {
			events = append(events, h.decode(msg)...)
			left--
		}
	}
	return events
}

// Settle waits until everything that a service has committed is published.
func (h *Harness) Settle(name string) {
	h.t.Helper()
	var rows int
	var err error
	h.eventually(awaitTimeout, func() bool {
		err = h.DB(name).QueryRow(h.ctx(), "SELECT count(*) FROM outbox WHERE published_at IS NULL").Scan(&rows)
		return err == nil && rows == 0
	}, func() string { return fmt.Sprintf("the outbox of %s still holds %d rows (error: %v)", name, rows, err) })
}

func (h *Harness) consumer(ctx context.Context, domain, typ string) jetstream.Consumer {
	h.t.Helper()
	stream, err := h.Bus.EnsureStream(ctx, domain)
	if err == nil {
		var consumer jetstream.Consumer
		consumer, err = stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
			FilterSubject: event.Subject(domain, typ), AckPolicy: jetstream.AckNonePolicy,
			DeliverPolicy: jetstream.DeliverAllPolicy, MemoryStorage: true, InactiveThreshold: awaitTimeout,
		})
		if err == nil {
			return consumer
		}
	}
	h.t.Fatalf("read the stream of %s: %v", domain, err)
	return nil
}

func (h *Harness) decode(msg jetstream.Msg) []*eventv1.Event {
	h.t.Helper()
	events, err := event.Read(msg.Headers(), msg.Data())
	if err != nil {
		h.t.Fatalf("decode an event: %v", err)
	}
	return events
}

// Pushes collects what is pushed to one person.
type Pushes struct {
	h   *Harness
	sub *nats.Subscription
}

// Pushes listens to what is pushed to a person from now on.
func (h *Harness) Pushes(user uuid.UUID) *Pushes {
	h.t.Helper()
	sub, err := h.Bus.Conn().SubscribeSync(realtime.Subject(user))
	if err == nil {
		err = h.Bus.Conn().FlushTimeout(awaitTimeout)
	}
	if err != nil {
		h.t.Fatalf("listen to pushes: %v", err)
	}
	h.t.Cleanup(func() { _ = sub.Unsubscribe() }) // the connection ends with the test as well
	return &Pushes{h: h, sub: sub}
}

// Next returns the next push for which match is true, a nil match takes any, and
// passes over the others.
func (p *Pushes) Next(match func(*realtimev1.Push) bool) *realtimev1.Push {
	p.h.t.Helper()
	ctx, cancel := context.WithTimeout(p.h.ctx(), awaitTimeout)
	defer cancel()
	for {
		msg, err := p.sub.NextMsgWithContext(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			p.h.t.Fatalf("no push that matches came on %s", p.sub.Subject)
		}
		if err != nil {
			p.h.t.Fatalf("wait for a push: %v", err)
		}
		frame := &realtimev1.ServerFrame{}
		if err := proto.Unmarshal(msg.Data, frame); err != nil {
			p.h.t.Fatalf("decode a push: %v", err)
		}
		if push := frame.GetPush(); push != nil && (match == nil || match(push)) {
			return push
		}
	}
}
