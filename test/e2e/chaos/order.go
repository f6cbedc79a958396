package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// lag is how much older than another event one may be that comes behind it: two
	// relays claim a batch each and publish them at the same time.
	lag = 10 * time.Second
)

// oldestFirst judges how the events came out that gathered while NATS was away.
func (w *witness) oldestFirst(ctx context.Context, out window) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	events, err := w.publishedSince(ctx, out.to)
	if err != nil {
		return err
	}
	var newest time.Time
	var worst time.Duration
	gathered := 0
	for _, e := range events {
		// What the relays do not touch, in the moments before the return, the
		// processes themselves publish.
		if e.born.Before(out.from) || e.born.After(out.to.Add(-5*time.Second)) {
			continue
		}
		gathered++
		worst = max(worst, newest.Sub(e.born))
		if e.born.After(newest) {
			newest = e.born
		}
	}
	if gathered == 0 {
		return errors.New("no event of the time when NATS was away came out")
	}
	if worst > lag {
		return fmt.Errorf("of %d events of the outage, one came behind others that were %s younger", gathered, worst)
	}
	return nil
}

// replayed waits until a stream that was wiped holds as many messages as there are, each of the retention again, and
// returns how many it holds.
func (w *witness) replayed(ctx context.Context, messages int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	good := until(ctx, func() bool {
		var events []publication
		if events, err = w.publishedSince(ctx, time.Unix(1, 0)); err != nil {
			return false
		}
		ids := map[string]bool{}
		for _, e := range events {
			if !strings.HasPrefix(e.key, poisoned) {
				ids[e.id] = true
			}
		}
		n = len(ids)
		return n >= messages
	})
	if !good {
		return n, errors.Join(fmt.Errorf("the stream that was wiped holds %d messages again, there are %d", n, messages), err)
	}
	return n, nil
}

// publication is an event in its stream.
type publication struct {
	id, key string
	born    time.Time
}

// publishedSince reads messaging's stream from a moment to its end.
func (w *witness) publishedSince(ctx context.Context, since time.Time) ([]publication, error) {
	stream, err := w.bus.JetStream().Stream(ctx, event.StreamName("messaging"))
	if err != nil {
		return nil, fmt.Errorf("read the stream: %w", err)
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{event.Subject("messaging", "message.created")},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
	if err != nil {
		return nil, fmt.Errorf("read the stream: %w", err)
	}
	var all []publication
	for {
		batch, err := consumer.Fetch(1000, jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, fmt.Errorf("read the stream: %w", err)
		}
		n := 0
		for msg := range batch.Messages() {
			n++
			var events []*eventv1.Event
			meta, err := msg.Metadata()
			if err == nil {
				events, err = event.Read(msg.Headers(), msg.Data())
			}
			if err != nil {
				return nil, fmt.Errorf("read an event: %w", err)
			}
			for _, ev := range events {
				all = append(all, publication{ev.GetId(), ev.GetKey(), ev.GetTime().AsTime()})
			}
			if meta.NumPending == 0 {
				return all, nil
			}
		}
		if n == 0 {
			return all, nil
		}
	}
}
