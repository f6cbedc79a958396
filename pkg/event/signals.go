package event

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// signalMaxAge is for how long streams keep signals: what was an hour ago is of no
// use to somebody who comes late.
const signalMaxAge = time.Hour

const signalsSuffix = "-signals"

// Signals is the source of a domain's signals: events that are born without a
// transaction, and so without an outbox, such as who is online. They stand in a
// short stream of their own, "events-<domain>-signals", on the subjects
// "event.<domain>-signals.<type>". Listeners and followers name it as their source.
func Signals(domain string) string { return domain + signalsSuffix }

func signalsOf(source string) (domain string, ok bool) {
	return strings.CutSuffix(source, signalsSuffix)
}

func (b *Bus) ensureSignals(ctx context.Context, domain string) (jetstream.Stream, error) {
	age := min(signalMaxAge, b.cfg.MaxAge)
	return b.ensure(ctx, jetstream.StreamConfig{
		Name:        StreamName(Signals(domain)),
		Description: "Signals of " + domain + ": events without an outbox, which may be missing.",
		Subjects:    []string{Subject(Signals(domain), ">")},
		Storage:     jetstream.FileStorage,
		Replicas:    b.cfg.Replicas,
		MaxAge:      age,
		Duplicates:  min(remembered, age),
		Discard:     jetstream.DiscardOld,
	})
}

// Signal sends signals of a domain and waits for their acknowledgements. Everything
// that tells of a change in a database goes through the outbox instead. now fills
// the time of signals that have none. After an error some may have been sent; a
// second try is another signal.
func (b *Bus) Signal(ctx context.Context, domain string, now time.Time, signals ...*eventv1.Event) error {
	for _, ev := range signals {
		if err := Check(ev); err != nil {
			return err
		}
		if err := Complete(ctx, ev, now); err != nil {
			return err
		}
	}
	messages, err := Messages(Signals(domain), signals)
	if err != nil {
		return err
	}
	err = b.sendAll(ctx, messages)
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		if _, err = b.ensureSignals(ctx, domain); err == nil {
			err = b.sendAll(ctx, messages) // the same ids: those that were taken are not taken twice
		}
	}
	return err
}

// sendAll publishes all and then waits for all: the round trips overlap.
func (b *Bus) sendAll(ctx context.Context, messages []*nats.Msg) error {
	futures := make([]jetstream.PubAckFuture, 0, len(messages))
	for _, msg := range messages {
		future, err := b.js.PublishMsgAsync(msg)
		if err != nil {
			return fmt.Errorf("publish %s: %w", msg.Subject, err)
		}
		futures = append(futures, future)
	}
	for _, future := range futures {
		select {
		case <-future.Ok():
		case err := <-future.Err():
			return fmt.Errorf("publish %s: %w", future.Msg().Subject, err)
		case <-ctx.Done():
			return fmt.Errorf("publish %s: %w", future.Msg().Subject, ctx.Err())
		}
	}
	return nil
}
