package presence

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const (
	// DueSubject wakes one replica of the user service: somebody's devices changed.
	DueSubject = "presence.due"
	// signalPeople go into one message of the bus.
	signalPeople = 256
	// signalBuffer is of messages, so many thousand changes.
	signalBuffer = 4096
	flushTimeout = 3 * time.Second
	checkEvery   = time.Second
)

// Subject is that of a shard's signals. Every gateway hears all of them.
func Subject(shard int) string { return "presence." + strconv.Itoa(shard) }

// Publish tells all gateways what has changed, and returns when the bus has it. An
// error says that some may not have been told.
func Publish(ctx context.Context, conn *nats.Conn, signals []*realtimev1.PresenceSignal) error {
	if len(signals) == 0 {
		return nil
	}
	var shards [Shards][]*realtimev1.PresenceSignal
	for _, s := range signals {
		user, err := uuid.FromBytes(s.GetUserId())
		if err != nil {
			return fmt.Errorf("signal: %w", err)
		}
		shards[ShardOf(user)] = append(shards[ShardOf(user)], s)
	}
	for shard, of := range shards {
		for len(of) > 0 {
			n := min(len(of), signalPeople)
			data, err := proto.Marshal(&realtimev1.PresenceSignals{Signals: of[:n]})
			if err != nil {
				return fmt.Errorf("encode signals: %w", err)
			}
			if err := conn.Publish(Subject(shard), data); err != nil {
				return fmt.Errorf("publish signals: %w", err)
			}
			of = of[n:]
		}
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := conn.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flush signals: %w", err)
	}
	return nil
}

// Follower hears the signals of everybody.
type Follower struct {
	Conn *nats.Conn
	Log  *slog.Logger
	// Signal takes one person's change. It runs on one goroutine, in order, and must
	// not block.
	Signal func(user uuid.UUID, signal *realtimev1.PresenceSignal)
	// Loss is told that signals were dropped because they came too fast. Those that
	// a broken connection lost are told by realtime.Subscriber, which shares it.
	Loss func()
}

// Run follows until ctx ends and returns nil.
func (f *Follower) Run(ctx context.Context) error {
	messages := make(chan *nats.Msg, signalBuffer)
	var subs [Shards]*nats.Subscription
	for shard := range subs {
		sub, err := f.Conn.ChanSubscribe(Subject(shard), messages)
		if err != nil {
			return fmt.Errorf("subscribe to signals: %w", err)
		}
		subs[shard] = sub
	}
	defer func() {
		for _, sub := range subs {
			_ = sub.Unsubscribe() // a closed connection has none left
		}
	}()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	var dropped int
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-messages:
			f.take(ctx, msg)
		case <-tick.C:
			if now := drops(subs[:]); now > dropped {
				dropped = now
				f.Loss()
			}
		}
	}
}

func (f *Follower) take(ctx context.Context, msg *nats.Msg) {
	var signals realtimev1.PresenceSignals
	if err := proto.Unmarshal(msg.Data, &signals); err != nil {
		f.Log.WarnContext(ctx, "signals that cannot be read", "subject", msg.Subject, "error", err)
		return
	}
	for _, s := range signals.GetSignals() {
		if user, err := uuid.FromBytes(s.GetUserId()); err == nil {
			f.Signal(user, s)
		}
	}
}

func drops(subs []*nats.Subscription) int {
	var sum int
	for _, sub := range subs {
		if n, err := sub.Dropped(); err == nil {
			sum += n
		}
	}
	return sum
}
