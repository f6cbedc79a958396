package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// Follow keeps a set in memory: it calls fn, one event at a time, with the events
// of the last since and then with every new one, until ctx ends. Every process
// that follows gets every event. fn must bear an event that it had before: after
// a lost connection or stream all of the last since comes again. caughtUp (may be
// nil) is called once, when all that was there at the beginning has been given.
//
// since counts back from this machine's clock, whatever the server's says.
func (b *Bus) Follow(ctx context.Context, source, typ string, since time.Duration,
	fn func(*eventv1.Event), caughtUp func(),
) error {
	f := &follower{bus: b, source: source, typ: typ, since: since, fn: fn, caughtUp: caughtUp}
	for {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end of ctx is why it failed
		}
		b.log.WarnContext(ctx, "follower starts over", "source", source, "type", typ, "error", err)
		pause(ctx, 500*time.Millisecond)
	}
}

type follower struct {
	bus         *Bus
	source, typ string
	since       time.Duration
	fn          func(*eventv1.Event)
	caughtUp    func()
}

func (f *follower) follow(ctx context.Context) error {
	cons, err := f.consumer(ctx)
	if err != nil {
		return err
	}
	if cons.CachedInfo().NumPending == 0 {
		f.ready()
	}
	iter, err := cons.Messages(jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(2*time.Second),
		jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	stop := context.AfterFunc(ctx, iter.Stop)
	defer stop()
	defer iter.Stop()
	for expected := uint64(1); ; expected++ {
		msg, err := iter.Next()
		if err != nil {
			return fmt.Errorf("next event: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read metadata: %w", err)
		}
		if meta.Sequence.Consumer != expected {
			return errors.New("an event was lost on the way")
		}
		events, err := Read(msg.Headers(), msg.Data())
		if err != nil {
			f.bus.log.ErrorContext(ctx, "follower skips an event that cannot be read", "subject", msg.Subject(), "error", err)
		}
		for _, ev := range events {
			f.fn(ev)
		}
		if meta.NumPending == 0 {
			f.ready()
		}
	}
}

// consumer makes one that the server forgets soon after we are gone. It needs no
// acknowledgements: numbers show what was lost.
func (f *follower) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := f.bus.EnsureStream(ctx, f.source)
	if err != nil {
		return nil, err
	}
	start := time.Now().Add(-f.since)
	cons, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		FilterSubject:     Subject(f.source, f.typ),
		DeliverPolicy:     jetstream.DeliverByStartTimePolicy,
		OptStartTime:      &start,
		AckPolicy:         jetstream.AckNonePolicy,
		MaxDeliver:        1,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("make consumer: %w", err)
	}
	return cons, nil
}

func (f *follower) ready() {
	if f.caughtUp != nil {
		f.caughtUp()
		f.caughtUp = nil
	}
}
