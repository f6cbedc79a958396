package event

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/anypb"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// ackWait is after how long without an answer JetStream delivers again: a
	// replica died. It is longer than any call of Handle.
	ackWait = 30 * time.Second
	// maxAckPending is how many messages a consumer has under way, over all
	// replicas, those that wait for their next try included.
	maxAckPending = 1024
	pullMessages  = 16
)

// consumer runs one listener in this process.
type consumer struct {
	ls  *Listeners
	l   Listener
	log *slog.Logger

	work  sync.WaitGroup
	state backlog

	mu sync.Mutex
	// failures counts per event, here and not in JetStream's delivery count:
	// that one rises with every outage and restart, and would park good events.
	failures map[string]int
	warned   time.Time // when an outage was last logged
}

// run consumes until ctx ends; whatever goes wrong with stream or consumer, it
// looks for them again.
func (c *consumer) run(ctx context.Context) error {
	defer c.work.Wait()
	for attempt := 1; ctx.Err() == nil; attempt++ {
		started := time.Now()
		err := c.consume(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) > time.Minute {
			attempt = 1
		}
		c.log.WarnContext(ctx, "listener looks for its consumer again", "error", err)
		pause(ctx, min(time.Duration(attempt)*200*time.Millisecond, 3*time.Second))
	}
	return nil
}

// consume takes messages until ctx ends or the consumer is lost.
func (c *consumer) consume(ctx context.Context) error {
	cons, err := c.ensure(ctx)
	if err != nil {
		return err
	}
	beat := c.ls.opts.heartbeat
	iter, err := cons.Messages(jetstream.PullMaxMessages(pullMessages),
		jetstream.PullExpiry(max(10*time.Second, 3*beat)), jetstream.PullHeartbeat(beat),
		jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	// Drained, not stopped: what was fetched ahead is given back below, or it
	// would reach another replica only after ackWait, at every release.
	stop := context.AfterFunc(ctx, iter.Drain)
	defer stop()
	defer iter.Stop()
	for {
		msg, err := iter.Next()
		if err != nil {
			return fmt.Errorf("next event: %w", err)
		}
		c.begin(ctx, msg)
	}
}

// begin has the events of a message worked on, each by itself. Those for which there
// is no time any more are given back.
func (c *consumer) begin(ctx context.Context, msg jetstream.Msg) {
	events, unreadable := Read(msg.Headers(), msg.Data())
	if unreadable != nil {
		// Nobody will ever read it; kept with its bytes for a person.
		events = []*eventv1.Event{{Type: c.l.Type, Payload: &anypb.Any{TypeUrl: "unreadable event", Value: msg.Data()}}}
	}
	d := &delivery{msg: msg, log: c.log, left: len(events), prolonged: time.Now()}
	for i, ev := range events {
		if !c.slot(ctx) {
			d.retry(ctx, len(events)-i, 0)
			return
		}
		c.work.Go(func() {
			defer func() { <-c.ls.slots }()
			c.take(ctx, d, ev, unreadable)
		})
	}
}

// slot waits for leave to work on an event; false says that ctx has ended.
func (c *consumer) slot(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case c.ls.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *consumer) ensure(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := c.ls.bus.EnsureStream(ctx, c.l.Source)
	if err != nil {
		return nil, err
	}
	cons, err := stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       durable(c.ls.service, c.l.Name),
		Description:   "Listener " + c.l.Name + " of " + c.ls.service + ".",
		FilterSubject: Subject(c.l.Source, c.l.Type),
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: maxAckPending,
	})
	if err != nil {
		return nil, fmt.Errorf("ensure consumer: %w", err)
	}
	c.state.consumer.Store(&cons)
	return cons, nil
}

// failed counts a failure of an event and returns how many there were.
func (c *consumer) failed(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) > 4*maxAckPending {
		// Events that another replica finished are never taken out. Starting
		// over costs some more tries.
		clear(c.failures)
	}
	c.failures[id]++
	return c.failures[id]
}

// mayWarn tells whether it is time to log an outage again.
func (c *consumer) mayWarn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.warned) < 10*time.Second {
		return false
	}
	c.warned = time.Now()
	return true
}

func (c *consumer) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.failures, id)
}

// defaultBackoff doubles from 200 ms up to 30 s and takes between half and all
// of that.
func defaultBackoff(attempt int) time.Duration {
	d := min(200*time.Millisecond<<min(attempt-1, 10), 30*time.Second)
	return d/2 + rand.N(d/2)
}

// pause waits, or returns when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
