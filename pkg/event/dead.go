package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	deadStream = "dead-letters"
	// headerSubject keeps where the event came from, for its way back.
	headerSubject = "Parley-Subject"
)

// deadLetter is what park knows.
type deadLetter struct {
	subject, service, listener, id string

	event    *eventv1.Event
	cause    error
	attempts int
	at       time.Time
}

// bury writes a dead letter and returns when it is stored.
func (b *Bus) bury(ctx context.Context, d deadLetter) error {
	data, err := proto.Marshal(&eventv1.DeadLetter{
		Event: d.event, Service: d.service, Listener: d.listener,
		Error: d.cause.Error(), Attempts: int32(min(d.attempts, 1<<30)), ParkedAt: timestamppb.New(d.at),
	})
	if err != nil {
		return fmt.Errorf("serialize dead letter: %w", err)
	}
	msg := nats.NewMsg("dead." + d.service + "." + d.listener)
	msg.Header.Set(headerSubject, d.subject)
	// Parked, not acknowledged, tried and parked again: one letter.
	msg.Header.Set(jetstream.MsgIDHeader, durable(d.service, d.listener)+"/"+d.id)
	msg.Data = data
	if _, err := b.ensureDead(ctx); err != nil {
		return err
	}
	if _, err := b.js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("store dead letter: %w", err)
	}
	return nil
}

// DeadFilter chooses dead letters; an empty field means all.
type DeadFilter struct {
	Service, Listener, EventID string
	// Limit is the most that are returned; zero means 1000.
	Limit int
}

// Dead is one dead letter.
type Dead struct {
	// Seq is its number in the stream of dead letters.
	Seq uint64
	// Subject is where the event was published.
	Subject string
	Letter  *eventv1.DeadLetter
}

// ListDead returns dead letters, oldest first.
func (b *Bus) ListDead(ctx context.Context, f DeadFilter) ([]Dead, error) {
	stream, err := b.ensureDead(ctx)
	if err != nil {
		return nil, err
	}
	if f.Limit <= 0 {
		f.Limit = 1000
	}
	subject := "dead.>"
	if f.Service != "" && f.Listener != "" {
		subject = "dead." + f.Service + "." + f.Listener
	} else if f.Service != "" {
		subject = "dead." + f.Service + ".>"
	}
	var out []Dead
	for seq := uint64(1); len(out) < f.Limit; seq++ {
		raw, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject)) // the next one at or after seq
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read dead letter: %w", err)
		}
		seq = raw.Sequence
		letter := &eventv1.DeadLetter{}
		if err := proto.Unmarshal(raw.Data, letter); err != nil {
			return nil, fmt.Errorf("parse dead letter %d: %w", seq, err)
		}
		if (f.EventID == "" || letter.GetEvent().GetId() == f.EventID) && (f.Listener == "" || letter.GetListener() == f.Listener) {
			out = append(out, Dead{Seq: seq, Subject: raw.Header.Get(headerSubject), Letter: letter})
		}
	}
	return out, nil
}

// Replay publishes the events of the chosen dead letters again, and removes the
// letters; it returns how many. Every listener of the type gets the event, and
// those that have done it do nothing. A crash between publishing and removing
// leaves a letter whose replay does nothing.
func (b *Bus) Replay(ctx context.Context, f DeadFilter) (int, error) {
	letters, err := b.ListDead(ctx, f)
	if err != nil {
		return 0, err
	}
	stream, err := b.ensureDead(ctx)
	if err != nil {
		return 0, err
	}
	for n, d := range letters {
		if d.Letter.GetEvent().GetId() == "" {
			return n, fmt.Errorf("dead letter %d holds bytes that are no event: %s", d.Seq, d.Letter.GetError())
		}
		ev := proto.CloneOf(d.Letter.GetEvent())
		ev.ReplySubject = "" // nobody waits any longer
		data, err := proto.Marshal(ev)
		if err != nil {
			return n, fmt.Errorf("serialize event: %w", err)
		}
		// Without the event's own Nats-Msg-Id, which may still be remembered.
		msg := nats.NewMsg(d.Subject)
		msg.Header.Set(jetstream.MsgIDHeader, fmt.Sprintf("replay-%d-%s", d.Seq, ev.GetId()))
		msg.Data = data
		if _, err := b.js.PublishMsg(ctx, msg); err != nil {
			return n, fmt.Errorf("publish event again: %w", err)
		}
		if err := stream.DeleteMsg(ctx, d.Seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return n, fmt.Errorf("remove dead letter: %w", err)
		}
	}
	return len(letters), nil
}
