package messaging

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

var (
	errClientMessageIDReused = rpc.Error(connect.CodeAlreadyExists, errorv1.Reason_REASON_CLIENT_MESSAGE_ID_REUSED, "this client_message_id was used for another message")
	errConversationClosed    = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONVERSATION_CLOSED, "this conversation takes no messages")
	errSendNotAllowed        = rpc.Error(connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED, "this person cannot be written to")
)

// SendMessage implements the RPC. It queues the message and waits for the commit.
// When the caller goes away first, the message may be committed all the same.
func (s *Service) SendMessage(ctx context.Context, req *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
	m, err := s.newSend(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := s.committer(m.conversationID).submit(m); err != nil {
		return nil, err
	}
	select {
	case a := <-m.done:
		return toSendMessageResponse(a)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// newSend prepares, in the caller's own time, all that the committer needs.
func (s *Service) newSend(ctx context.Context, req *messagingv1.SendMessageRequest) (*send, error) {
	conversationID, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	clientMessageID, err := parseID(req.GetClientMessageId())
	if err != nil {
		return nil, err
	}
	body, err := proto.Marshal(&messagingv1.Message{Text: req.GetText()})
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	m := &send{
		key:            sendKey{sender: identity.From(ctx).UserID, clientMessage: clientMessageID},
		conversationID: conversationID,
		text:           req.GetText(),
		hash:           contentHash(conversationID, req.GetText()),
		body:           body,
		span:           trace.SpanContextFromContext(ctx),
		abandoned:      ctx.Done(),
		done:           make(chan answer, 1),
	}
	m.event = messageCreated(conversationID, m.key)
	// Here and not in the batch, so that the event carries the trace of its caller.
	if err := event.Complete(ctx, m.event, s.clock.Now()); err != nil {
		return nil, err
	}
	return m, nil
}

func toSendMessageResponse(a answer) (*messagingv1.SendMessageResponse, error) {
	switch a.outcome {
	case outcomeAppended, outcomeRepeated:
		return &messagingv1.SendMessageResponse{Seq: a.seq, Ordinal: a.ordinal, CreatedAt: timestamppb.New(a.createdAt)}, nil
	case outcomeReused:
		return nil, errClientMessageIDReused
	case outcomeUnknown:
		return nil, errConversationNotFound
	case outcomeLeft:
		return nil, errNotAMember
	case outcomeClosed:
		return nil, errConversationClosed
	case outcomeNotAllowed:
		return nil, errSendNotAllowed
	case outcomeStale, outcomeFailed:
		return nil, a.err
	}
	return nil, fmt.Errorf("a send ended with outcome %d", a.outcome)
}
