package messaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// outcome is what became of a send. The numbers are those of batch/append.sql.
type outcome int16

const (
	outcomeAppended   outcome = 1 // it is in the log
	outcomeRepeated   outcome = 2 // it was in the log already, with the same content
	outcomeReused     outcome = 3 // its client message id is in the log with another content
	outcomeUnknown    outcome = 4 // no such conversation, or never a member
	outcomeLeft       outcome = 5 // not a member any more
	outcomeClosed     outcome = 6 // the conversation takes no messages
	outcomeNotAllowed outcome = 7 // privacy said no
	outcomeStale      outcome = 8 // privacy has to be asked; never the final outcome
	outcomeFailed     outcome = 9 // not known or not accepted; the answer's err says why
)

// String is the outcome's name in metrics.
func (o outcome) String() string {
	names := [...]string{"", "appended", "repeated", "reused", "unknown_conversation", "left", "closed", "not_allowed", "stale", "failed"}
	if o <= 0 || int(o) >= len(names) {
		return "unspecified"
	}
	return names[o]
}

// stored says that the log holds the message.
func (o outcome) stored() bool { return o == outcomeAppended || o == outcomeRepeated }

// answer is the final outcome of a send.
type answer struct {
	outcome   outcome
	seq       int64
	ordinal   int64
	createdAt time.Time
	err       error // only with outcomeFailed
}

// sendKey identifies a message of its sender, for idempotency.
type sendKey struct {
	sender, clientMessage uuid.UUID
}

// hashBytes of a SHA-256 tell two contents of one id apart. Only the sender itself
// could make a collision, and would only fool itself.
const hashBytes = 16

// send is one message on its way through the committer. Only the committer that
// has taken it touches it; its caller reads done.
type send struct {
	key            sendKey
	conversationID uuid.UUID
	text           string
	hash           []byte
	body           []byte         // Message, encoded: the entry's payload
	event          *eventv1.Event // message.created without its key_version
	span           trace.SpanContext
	abandoned      <-chan struct{} // the caller has gone

	permission *permission // privacy's answer, which its transaction stores; nil: not asked
	tries      int         // how often its permission was asked for
	followers  []*send     // same key, came while this one was in the same batch
	done       chan answer
}

// contentHash covers all that makes two sends of one id the same. It is made of
// the content and not of its encoding, which another release may do differently.
func contentHash(conversationID uuid.UUID, text string) []byte {
	h := sha256.New()
	h.Write(conversationID[:])
	h.Write([]byte(text))
	return h.Sum(nil)[:hashBytes]
}

// bytes is what the send adds to its batch, about.
func (s *send) bytes() int { return len(s.body) + 256 }

// answer tells the caller, if it is still there, and those who sent the same.
// Those who used its id for something else are returned: while this send is not
// in the log they are judged by themselves.
func (s *send) answer(a answer) (others []*send) {
	s.done <- a // room for one, and sent once
	for _, f := range s.followers {
		switch {
		case bytes.Equal(f.hash, s.hash) && a.outcome == outcomeAppended:
			repeated := a
			repeated.outcome = outcomeRepeated
			others = append(others, f.answer(repeated)...)
		case bytes.Equal(f.hash, s.hash):
			others = append(others, f.answer(a)...)
		case a.outcome.stored():
			others = append(others, f.answer(answer{outcome: outcomeReused})...)
		default:
			others = append(others, f)
		}
	}
	return others
}

// gone says that the caller does not wait any more. A send that has not been
// taken into a transaction by then is dropped; later it may still be committed.
func (s *send) gone() bool {
	select {
	case <-s.abandoned:
		return true
	default:
		return false
	}
}

// entry is what the send has become in the log.
func (s *send) entry(v verdict) *messagingv1.Entry {
	return &messagingv1.Entry{
		ConversationId:  s.conversationID.String(),
		Seq:             v.seq,
		Ordinal:         v.ordinal,
		SenderId:        s.key.sender.String(),
		CreatedAt:       timestamppb.New(v.createdAt),
		ClientMessageId: s.key.clientMessage.String(),
		Body:            &messagingv1.Entry_Message{Message: &messagingv1.Message{Text: s.text}},
	}
}

// links tells a batch's span of the sampled calls that it works for.
func links(sends []*send) []trace.Link {
	var sampled []trace.Link
	for _, s := range sends {
		if s.span.IsSampled() {
			sampled = append(sampled, trace.Link{SpanContext: s.span})
		}
	}
	return sampled
}

// batchStep names the step of a group commit in traces.
const batchStep = "messaging.commit_batch"

// trace begins the step of a batch that works for sampled calls. It is a child of
// the first of them, so that it is sampled too; the others get the same step
// without what is inside, with a link to where that is.
func (c *committer) trace(ctx context.Context, sampled []trace.Link, started time.Time) (_ context.Context, end func()) {
	traced, span := c.tracer.Start(trace.ContextWithSpanContext(ctx, sampled[0].SpanContext), batchStep,
		trace.WithTimestamp(started), trace.WithLinks(sampled[1:]...))
	return traced, func() {
		span.End()
		for _, other := range sampled[1:] {
			_, same := c.tracer.Start(trace.ContextWithSpanContext(ctx, other.SpanContext), batchStep,
				trace.WithTimestamp(started), trace.WithLinks(trace.Link{SpanContext: span.SpanContext()}))
			same.End()
		}
	}
}
