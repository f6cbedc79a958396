package messaging

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// A replica that dies between its commit and its push leaves a row in the outbox.
// Another replica's relay publishes the event and pushes the message.
func TestMessageOfADeadReplicaIsPushed(t *testing.T) {
	t.Parallel()
	h := servicetest.Start(t, servicetest.Options{}, Definition())
	a, b := uuid.New(), uuid.New()
	for _, id := range []uuid.UUID{a, b} {
		h.Deliver("auth", "messaging", event.New("account.registered", id.String(), 1, &authv1.AccountRegistered{AccountId: id.String()}))
	}
	client := messagingv1connect.NewMessagingServiceClient(h.Dial("messaging", h.User(a)))
	made, err := client.CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: b.String()})
	require.NoError(t, err)
	conversation := uuid.MustParse(made.GetConversation().GetId())
	// Makes the permission state fresh.
	_, err = client.SendMessage(t.Context(), &messagingv1.SendMessageRequest{
		ConversationId: conversation.String(), ClientMessageId: uuid.NewString(), Text: "alive",
	})
	require.NoError(t, err)
	h.Settle("messaging")

	// The dead one: it commits, and neither publishes nor pushes.
	dead := &appender{
		db: h.DB("messaging"), clock: h.Clock, partitions: entryPartitions(),
		outbox: outbox.New(h.DB("messaging"), h.Bus, "messaging", h.Clock, testkit.Logger(t)),
	}
	last := &send{
		key: sendKey{sender: a, clientMessage: uuid.New()}, conversationID: conversation, text: "last words",
		hash: contentHash(conversation, "last words"), done: make(chan answer, 1),
	}
	last.body, err = proto.Marshal(&messagingv1.Message{Text: last.text})
	require.NoError(t, err)
	last.event = messageCreated(conversation, last.key)
	unknown := &send{
		key: sendKey{sender: a, clientMessage: uuid.New()}, conversationID: uuid.New(),
		hash: last.hash, body: last.body, event: messageCreated(uuid.New(), last.key), done: make(chan answer, 1),
	}
	pushes := h.Pushes(b)
	verdicts, err := dead.append(t.Context(), []*send{unknown, last})
	require.NoError(t, err)
	require.Equal(t, outcomeUnknown, verdicts[0].outcome)
	require.Equal(t, outcomeAppended, verdicts[1].outcome)

	h.Clock.Advance(10 * time.Second) // beyond the grace of the relay, within the minute
	push := pushes.Next(func(p *realtimev1.Push) bool { return p.GetEntry().GetMessage().GetText() == "last words" })
	require.EqualValues(t, 3, push.GetEntry().GetSeq())
	require.Equal(t, last.key.clientMessage.String(), push.GetEntry().GetClientMessageId())

	told := h.Events("messaging", "message.created")
	require.Len(t, told, 2, "the refused one did not happen")
	require.EqualValues(t, 3, told[1].GetKeyVersion())
}
