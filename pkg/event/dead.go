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
	// Seq is the number of one letter.
	Seq uint64
	// Service and Listener could not take the event; Type and EventID are its own.
	Service, Listener, Type, EventID string
	// After leaves out letters up to this number, for the next page; UpTo, unless
	// zero, those beyond it.
	After, UpTo uint64
	// Limit is the most that are chosen; zero means 1000.
	Limit int
}

// defaultDead is DeadFilter.Limit.
const defaultDead = 1000

// Dead is one dead letter.
type Dead struct {
	// Seq is its number in the stream of dead letters.
	Seq uint64
	// Subject is where the event was published.
	Subject string
	// Letter tells of itself by its error alone if it cannot be read.
	Letter *eventv1.DeadLetter
}

var (
	// ErrNoDeadLetter says that there is no dead letter with a number.
	ErrNoDeadLetter = errors.New("no such dead letter")
	// ErrNotReplayable says that a dead letter holds nothing that could be published.
	// It can be dropped.
	ErrNotReplayable = errors.New("holds no event that could be published")
)

// subject narrows what is read to what can match. Names of listeners have dots of
// their own, so they are compared besides.
func (f DeadFilter) subject() string {
	switch {
	case f.Service != "" && f.Listener != "":
		return "dead." + f.Service + "." + f.Listener
	case f.Service != "":
		return "dead." + f.Service + ".>"
	default:
		return "dead.>"
	}
}

func (f DeadFilter) matches(d Dead) bool {
	fits := func(want, is string) bool { return want == "" || want == is }
	return fits(f.Service, d.Letter.GetService()) && fits(f.Listener, d.Letter.GetListener()) &&
		fits(f.Type, d.Letter.GetEvent().GetType()) && fits(f.EventID, d.Letter.GetEvent().GetId())
}

// ListDead returns dead letters, oldest first.
func (b *Bus) ListDead(ctx context.Context, f DeadFilter) ([]Dead, error) {
	stream, err := b.js.Stream(ctx, deadStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil // nothing has ever been parked
	}
	if err != nil {
		return nil, fmt.Errorf("find the dead letters: %w", err)
	}
	if f.Limit <= 0 {
		f.Limit = defaultDead
	}
	if f.Seq != 0 {
		d, err := readDead(ctx, stream, f.Seq)
		if err != nil || d == nil || !f.matches(*d) {
			return nil, err
		}
		return []Dead{*d}, nil
	}
	var out []Dead
	for seq := f.After + 1; len(out) < f.Limit; seq++ {
		d, err := readDead(ctx, stream, seq, jetstream.WithGetMsgSubject(f.subject())) // the next one at or after seq
		if err != nil {
			return out, err
		}
		if d == nil || f.UpTo != 0 && d.Seq > f.UpTo {
			break
		}
		if seq = d.Seq; f.matches(*d) {
			out = append(out, *d)
		}
	}
	return out, nil
}

// readDead returns nil where there is none.
func readDead(ctx context.Context, stream jetstream.Stream, seq uint64, opts ...jetstream.GetMsgOpt) (*Dead, error) {
	raw, err := stream.GetMsg(ctx, seq, opts...)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("read dead letter: %w", err)
	}
	d := &Dead{Seq: raw.Sequence, Subject: raw.Header.Get(headerSubject), Letter: &eventv1.DeadLetter{}}
	if err := proto.Unmarshal(raw.Data, d.Letter); err != nil {
		d.Letter = &eventv1.DeadLetter{Error: "this letter cannot be read: " + err.Error()}
	}
	return d, nil
}

// ShowDead returns one dead letter, or ErrNoDeadLetter.
func (b *Bus) ShowDead(ctx context.Context, seq uint64) (Dead, error) {
	found, err := b.ListDead(ctx, DeadFilter{Seq: seq})
	if err != nil {
		return Dead{}, err
	}
	if len(found) == 0 {
		return Dead{}, fmt.Errorf("%w: %d", ErrNoDeadLetter, seq)
	}
	return found[0], nil
}

// Replay publishes the events of the chosen dead letters again, and removes the
// letters; it returns how many. Every listener of the type gets the event, and
// those that have done it do nothing. A crash between publishing and removing
// leaves a letter whose replay does nothing. What fails again is parked again, as a
// new letter, which this call does not see.
//
// Letters that hold no event are left, with an error that wraps ErrNotReplayable;
// the others are replayed all the same. A letter that somebody else removes at this
// moment is not counted.
func (b *Bus) Replay(ctx context.Context, f DeadFilter) (int, error) {
	return b.eachDead(ctx, f, b.replayOne)
}

// Drop removes the chosen dead letters for good, and returns how many. Their
// effects never happen, unless somebody replays them at this moment: a letter whose
// event is published already and not removed yet counts as dropped. One that
// somebody else has removed is not counted.
func (b *Bus) Drop(ctx context.Context, f DeadFilter) (int, error) {
	return b.eachDead(ctx, f, func(context.Context, Dead) error { return nil })
}

// eachDead does something with each of the chosen letters and then removes it.
func (b *Bus) eachDead(ctx context.Context, f DeadFilter, do func(ctx context.Context, d Dead) error) (int, error) {
	letters, err := b.ListDead(ctx, f)
	if err != nil || len(letters) == 0 {
		return 0, err
	}
	stream, err := b.js.Stream(ctx, deadStream)
	if err != nil {
		return 0, fmt.Errorf("find the dead letters: %w", err)
	}
	n := 0
	var left []error
	for _, d := range letters {
		err := do(ctx, d)
		if errors.Is(err, ErrNotReplayable) {
			left = append(left, err)
			continue
		}
		if err != nil {
			return n, errors.Join(append(left, err)...)
		}
		ours, err := removeDead(ctx, stream, d.Seq)
		if err != nil {
			return n, errors.Join(append(left, err)...)
		}
		if ours {
			n++
		}
	}
	return n, errors.Join(left...)
}

// removeDead removes a letter; ours is false if it was gone. JetStream says only
// that it could not delete, so what is still there decides.
func removeDead(ctx context.Context, stream jetstream.Stream, seq uint64) (ours bool, err error) {
	failed := stream.DeleteMsg(ctx, seq)
	if failed == nil {
		return true, nil
	}
	if d, err := readDead(ctx, stream, seq); err == nil && d == nil {
		return false, nil
	}
	return false, fmt.Errorf("remove dead letter %d: %w", seq, failed)
}

// replayOne publishes the event of a letter.
func (b *Bus) replayOne(ctx context.Context, d Dead) error {
	if d.Letter.GetEvent().GetId() == "" || d.Subject == "" {
		return fmt.Errorf("dead letter %d %w: %s", d.Seq, ErrNotReplayable, d.Letter.GetError())
	}
	ev := proto.CloneOf(d.Letter.GetEvent())
	ev.ReplySubject = "" // nobody waits any longer
	data, err := proto.Marshal(ev)
	if err != nil {
		return fmt.Errorf("serialize event: %w", err)
	}
	// Without the event's own Nats-Msg-Id, which may still be remembered.
	msg := nats.NewMsg(d.Subject)
	msg.Header.Set(jetstream.MsgIDHeader, fmt.Sprintf("replay-%d-%s", d.Seq, ev.GetId()))
	msg.Data = data
	if _, err := b.js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("publish event again: %w", err)
	}
	return nil
}
