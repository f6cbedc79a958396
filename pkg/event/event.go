// Package event carries domain events between services over NATS JetStream.
//
// It owns: the connection (Bus), one stream per domain and the stream of dead
// letters, the listeners of a service and their guards (Listeners), barriers
// (Barrier), and followers that keep a set in memory (Bus.Follow).
//
// Invariants: an event may arrive twice, late and in any order, and a listener
// ends up right all the same; the effect of an event and the guard that makes it
// happen once commit in one transaction; what a listener cannot take is parked,
// never dropped.
//
// It never publishes an event that tells of a change before the change is
// committed: that is package outbox's work. It knows no domain.
package event

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// MaxBytes is the most that one serialized event may have. NATS takes 1 MiB by
// default; an event holds ids and facts, so whoever comes near it is wrong.
const MaxBytes = 512 << 10

// unpackable begins the type of a payload that New could not pack.
const unpackable = "payload cannot be packed: "

// New makes an event of the given type (for example "account.registered") about
// the aggregate key at its dense version. The outbox fills id, time and
// traceparent. A payload that cannot be packed is told by Check, which the
// outbox calls: that way a call of New reads like a literal.
func New(typ, key string, version int64, payload proto.Message) *eventv1.Event {
	ev := &eventv1.Event{Type: typ, Key: key, KeyVersion: version}
	if payload != nil {
		packed, err := anypb.New(payload)
		if err != nil {
			packed = &anypb.Any{TypeUrl: unpackable + err.Error()}
		}
		ev.Payload = packed
	}
	return ev
}

// isTypeName says whether a text is like "noun.happened": at least two words of small
// letters, digits and underscores, each beginning with a letter. It is asked for each
// event; a regular expression cost a hundredth of the server.
func isTypeName(s string) bool {
	words := 0
	for word := range strings.SplitSeq(s, ".") {
		for i := range len(word) {
			switch b := word[i]; {
			case 'a' <= b && b <= 'z':
			case i > 0 && (b == '_' || '0' <= b && b <= '9'):
			default:
				return false
			}
		}
		if word == "" {
			return false
		}
		words++
	}
	return words > 1
}

// Check tells what is wrong with an event that is about to be emitted.
func Check(ev *eventv1.Event) error {
	switch {
	case ev == nil:
		return fmt.Errorf("event is nil")
	case !isTypeName(ev.GetType()):
		return fmt.Errorf("event type %q is not like noun.happened", ev.GetType())
	case ev.GetKey() == "":
		return fmt.Errorf("event %s has no key", ev.GetType())
	case strings.HasPrefix(ev.GetPayload().GetTypeUrl(), unpackable):
		return fmt.Errorf("event %s: %s", ev.GetType(), ev.GetPayload().GetTypeUrl())
	case proto.Size(ev) > MaxBytes:
		return fmt.Errorf("event %s has %d bytes, more than %d", ev.GetType(), proto.Size(ev), MaxBytes)
	}
	return nil
}

// Complete fills what the publisher knows and the domain does not: id, time and
// the trace of ctx. What is set already stays.
func Complete(ctx context.Context, ev *eventv1.Event, now time.Time) error {
	if ev.GetId() == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("make event id: %w", err)
		}
		ev.Id = id.String()
	}
	if ev.GetTime() == nil {
		ev.Time = timestamppb.New(now)
	}
	if ev.GetTraceparent() == "" {
		carrier := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, carrier)
		ev.Traceparent = carrier["traceparent"]
	}
	return nil
}

// Subject is the NATS subject of an event type of a domain:
// "event.<domain>.<type>".
func Subject(domain, typ string) string { return "event." + domain + "." + typ }

// StreamName is the JetStream stream of a domain.
func StreamName(domain string) string { return "events-" + domain }
