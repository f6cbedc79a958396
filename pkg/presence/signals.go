package presence

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
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
	return publish(ctx, conn, signals, (*realtimev1.PresenceSignal).GetUserId,
		func(of []*realtimev1.PresenceSignal) *realtimev1.PresenceSignals {
			return &realtimev1.PresenceSignals{Signals: of}
		})
}

// PublishMissing asks all gateways to report these people again, where they are
// connected.
func PublishMissing(ctx context.Context, conn *nats.Conn, users []uuid.UUID) error {
	return publish(ctx, conn, users, func(user uuid.UUID) []byte { return user[:] },
		func(of []uuid.UUID) *realtimev1.PresenceSignals {
			all := &realtimev1.PresenceSignals{}
			for _, user := range of {
				all.Missing = append(all.Missing, user[:])
			}
			return all
		})
}

// Pair is somebody, and who sees them; uuid.Nil for everybody.
type Pair struct{ User, Viewer uuid.UUID }

// PublishRechecks has the watches of these pairs be asked for again. It is told
// after the commit of what has changed between them, so that whoever asks then gets
// the new answer.
func PublishRechecks(ctx context.Context, conn *nats.Conn, pairs ...Pair) error {
	return publish(ctx, conn, pairs, func(p Pair) []byte { return p.User[:] },
		func(of []Pair) *realtimev1.PresenceSignals {
			all := &realtimev1.PresenceSignals{}
			for _, p := range of {
				r := &realtimev1.PresenceRecheck{UserId: p.User[:]}
				if p.Viewer != uuid.Nil {
					r.ViewerId = p.Viewer[:]
				}
				all.Rechecks = append(all.Rechecks, r)
			}
			return all
		})
}

// publish sends items by the shard of their person, and waits for the bus.
func publish[T any](
	ctx context.Context, conn *nats.Conn, items []T, person func(T) []byte, message func([]T) *realtimev1.PresenceSignals,
) error {
	if len(items) == 0 {
		return nil
	}
	var shards [Shards][]T
	for _, item := range items {
		user, err := uuid.FromBytes(person(item))
		if err != nil {
			return fmt.Errorf("signal: %w", err)
		}
		shards[ShardOf(user)] = append(shards[ShardOf(user)], item)
	}
	for shard, of := range shards {
		for chunk := range slices.Chunk(of, signalPeople) {
			data, err := proto.Marshal(message(chunk))
			if err != nil {
				return fmt.Errorf("encode signals: %w", err)
			}
			if err := conn.Publish(Subject(shard), data); err != nil {
				return fmt.Errorf("publish signals: %w", err)
			}
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
	// Missing takes somebody who should be on the roll and is not: who is connected
	// here is to be reported again. By the same rules; nil where nobody reports.
	Missing func(user uuid.UUID)
	// Recheck takes somebody whom a viewer, or everybody if that is uuid.Nil, may see
	// now, or may not any more. By the same rules; nil where nobody watches.
	Recheck func(user, viewer uuid.UUID)
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
	for _, raw := range signals.GetMissing() {
		if user, err := uuid.FromBytes(raw); err == nil && f.Missing != nil {
			f.Missing(user)
		}
	}
	for _, r := range signals.GetRechecks() {
		f.recheck(r)
	}
}

// recheck leaves out what cannot be read; a viewer that cannot be is everybody, so
// that nobody goes on seeing whom they may not.
func (f *Follower) recheck(r *realtimev1.PresenceRecheck) {
	user, err := uuid.FromBytes(r.GetUserId())
	if err != nil || f.Recheck == nil {
		return
	}
	viewer, err := uuid.FromBytes(r.GetViewerId())
	if err != nil {
		viewer = uuid.Nil
	}
	f.Recheck(user, viewer)
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
