package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// lag is how much older than another event one may be that comes behind it: two
	// relays claim a batch each and publish them at the same time.
	lag = 10 * time.Second
	// relayRate is the product's cap of one relay, in rows a second, of which each
	// holds one message or more; relays is how many there are. The first second
	// passes twice as much.
	relayRate, relays = 5000, 2
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
	perSecond := map[int64]int{}
	for _, e := range events {
		// What the relays do not touch, in the moments before the return, the
		// processes themselves publish.
		if e.born.Before(out.from) || e.born.After(out.to.Add(-5*time.Second)) {
			continue
		}
		gathered++
		perSecond[e.published.Unix()]++
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
	for _, n := range perSecond {
		if n > 2*relayRate*relays {
			return fmt.Errorf("the relays published %d events in a second", n)
		}
	}
	return nil
}

// publication is an event in its stream.
type publication struct{ born, published time.Time }

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
			ev := &eventv1.Event{}
			meta, err := msg.Metadata()
			if err == nil {
				err = proto.Unmarshal(msg.Data(), ev)
			}
			if err != nil {
				return nil, fmt.Errorf("read an event: %w", err)
			}
			all = append(all, publication{ev.GetTime().AsTime(), meta.Timestamp})
			if meta.NumPending == 0 {
				return all, nil
			}
		}
		if n == 0 {
			return all, nil
		}
	}
}
