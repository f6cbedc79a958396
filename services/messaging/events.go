package messaging

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/erasure"
	"github.com/parleychat/parley/pkg/event"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

// The types of the events that messaging emits.
const (
	typeConversationCreated = "conversation.created"
	typeMessageCreated      = "message.created"
	typeMessageDelivered    = "message.delivered"
	typeMessageSeen         = "message.seen"
)

// recoverySpan bounds by created_at where pushed entries are looked for. They are
// younger than a minute by the clock of the process that died.
const recoverySpan = time.Hour

// conversationCreated tells of a new log: key_version is the seq of its first entry.
func conversationCreated(id uuid.UUID, members ...uuid.UUID) *eventv1.Event {
	payload := &messagingv1.ConversationCreated{
		ConversationId: id.String(),
		Kind:           messagingv1.ConversationKind_CONVERSATION_KIND_DIRECT,
	}
	for _, m := range members {
		payload.MemberIds = append(payload.MemberIds, m.String())
	}
	return event.New(typeConversationCreated, id.String(), firstSeq, payload)
}

// messageCreated tells of a message that is not in the log yet: its key_version,
// which is its seq, is assigned by the statement that appends it.
func messageCreated(conversationID uuid.UUID, key sendKey) *eventv1.Event {
	return event.New(typeMessageCreated, conversationID.String(), 0, &messagingv1.MessageCreated{
		ConversationId:  conversationID.String(),
		SenderId:        key.sender.String(),
		ClientMessageId: key.clientMessage.String(),
	})
}

// messageDelivered and messageSeen tell of one transaction of a flush; id is theirs
// and their key. Every mark in them is a maximum, so their order does not matter.
func messageDelivered(id uuid.UUID, marks []*messagingv1.Watermark) *eventv1.Event {
	return event.New(typeMessageDelivered, id.String(), 1, &messagingv1.MessageDelivered{Watermarks: marks})
}

func messageSeen(id uuid.UUID, marks []*messagingv1.Watermark) *eventv1.Event {
	return event.New(typeMessageSeen, id.String(), 1, &messagingv1.MessageSeen{Watermarks: marks})
}

// listeners are the subscriptions of the service.
func (s *Service) listeners() []event.Listener {
	return []event.Listener{
		event.On("auth", "account.registered", event.ByVersion, s.onAccountRegistered),
		event.On("user", "user.presence_settings_changed", event.ByVersion, s.onPresenceSettingsChanged),
		erasure.Listener("messaging", s.outbox, s.forget),
	}
}

// onAccountRegistered notes that a person exists, who can be written to from now on.
func (s *Service) onAccountRegistered(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, registered *authv1.AccountRegistered) error {
	id, err := uuid.Parse(registered.GetAccountId())
	if err != nil {
		return fmt.Errorf("account id: %w", err)
	}
	if err := db.New(tx).PersonUpsert(ctx, db.PersonUpsertParams{ID: id, Version: ev.GetKeyVersion()}); err != nil {
		return fmt.Errorf("upsert person: %w", err)
	}
	return nil
}

// repush pushes what another process committed and perhaps did not push any more.
// Receipts are not repeated: they are a hint in every respect.
func (s *Service) repush(ctx context.Context, events []*eventv1.Event) {
	var entries db.EntryRecoveredParams
	var seen db.ConversationSeenParams
	for _, ev := range events {
		id, err := uuid.Parse(ev.GetKey())
		if err != nil {
			s.log.WarnContext(ctx, "own event without an id as key", "type", ev.GetType())
			continue
		}
		switch ev.GetType() {
		case typeMessageCreated:
			entries.ConversationIds = append(entries.ConversationIds, id)
			entries.Seqs = append(entries.Seqs, ev.GetKeyVersion())
		case typeConversationCreated:
			for _, member := range membersOf(ev) {
				seen.ViewerIds = append(seen.ViewerIds, member)
				seen.ConversationIds = append(seen.ConversationIds, id)
			}
		}
	}
	if err := s.pushConversations(ctx, seen); err != nil {
		s.log.WarnContext(ctx, "push recovered conversations", "error", err)
	}
	if err := s.repushEntries(ctx, entries); err != nil {
		s.log.WarnContext(ctx, "push recovered messages", "error", err)
	}
}

func (s *Service) repushEntries(ctx context.Context, params db.EntryRecoveredParams) error {
	if len(params.Seqs) == 0 {
		return nil
	}
	params.Since = s.clock.Now().Add(-recoverySpan)
	rows, err := s.queries.EntryRecovered(ctx, params)
	if err != nil {
		return fmt.Errorf("read entries: %w", err)
	}
	for _, r := range rows {
		s.pusher.entry(ctx, pair(r.DirectLow, r.DirectHigh), toEntry(logEntry{
			conversationID: r.ConversationID, seq: r.Seq, ordinal: r.Ordinal, senderID: r.SenderID,
			createdAt: r.CreatedAt, clientMessageID: r.ClientMessageID, kind: entryKind(r.Kind), payload: r.Payload,
		}))
	}
	return nil
}

// pushConversations tells each viewer of a conversation as it sees it.
func (s *Service) pushConversations(ctx context.Context, params db.ConversationSeenParams) error {
	if len(params.ViewerIds) == 0 {
		return nil
	}
	seen, err := s.recent.see(ctx, params)
	if err != nil {
		return err
	}
	for at, c := range seen {
		s.pusher.conversation(ctx, at.userID, c)
	}
	return nil
}

// membersOf reads the people from a conversation.created of our own.
func membersOf(ev *eventv1.Event) []uuid.UUID {
	var payload messagingv1.ConversationCreated
	if err := ev.GetPayload().UnmarshalTo(&payload); err != nil {
		return nil
	}
	var members []uuid.UUID
	for _, raw := range payload.GetMemberIds() {
		if id, err := uuid.Parse(raw); err == nil {
			members = append(members, id)
		}
	}
	return members
}
