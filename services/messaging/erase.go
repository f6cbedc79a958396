package messaging

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/event"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

// maxClosedPushes bounds what is told at once when somebody is forgotten; who is
// not told learns it from Sync.
const maxClosedPushes = 500

// forget is messaging's part of deleting a person. The logs stay as they are, for
// they are the other people's too: what the person wrote keeps its sender's id,
// which leads to nothing any more. Direct conversations take no messages from now
// on; how far the person has read and its client message ids are removed.
//
// The person's row is locked first. Whoever starts a conversation with it holds a
// share of that lock: either it is seen here, or its start finds the person gone.
// A send that holds a conversation's lock is in the log before, any other finds
// the conversation closed. A watermark that waits in a replica's memory at this
// moment may be stored afterwards: it says how far an id without a name has read.
func (s *Service) forget(ctx context.Context, tx pgx.Tx, person uuid.UUID) error {
	queries := db.New(tx)
	if err := queries.PersonForget(ctx, person); err != nil {
		return fmt.Errorf("mark the person as forgotten: %w", err)
	}
	if err := queries.InvisibleForget(ctx, person); err != nil {
		return fmt.Errorf("forget the settings: %w", err)
	}
	conversations, err := queries.PersonConversationsLock(ctx, person)
	if err != nil {
		return fmt.Errorf("lock the person's conversations: %w", err)
	}
	var all, direct []uuid.UUID
	var told db.ConversationSeenParams
	for _, c := range conversations {
		all = append(all, c.ID)
		if messagingv1.ConversationKind(c.Kind) != messagingv1.ConversationKind_CONVERSATION_KIND_DIRECT {
			continue
		}
		direct = append(direct, c.ID)
		for _, member := range pair(c.DirectLow, c.DirectHigh) {
			if member != person && len(told.ViewerIds) < maxClosedPushes {
				told.ViewerIds = append(told.ViewerIds, member)
				told.ConversationIds = append(told.ConversationIds, c.ID)
			}
		}
	}
	if err := queries.ConversationClose(ctx, direct); err != nil {
		return fmt.Errorf("close direct conversations: %w", err)
	}
	if err := forgetMember(ctx, queries, person, all); err != nil {
		return err
	}
	if err := queries.SendKeyForget(ctx, person); err != nil {
		return fmt.Errorf("delete client message ids: %w", err)
	}
	event.AfterCommit(ctx, func() {
		if err := s.pushConversations(ctx, told); err != nil {
			s.log.WarnContext(ctx, "push closed conversations", "error", err)
		}
	})
	return nil
}

// forgetMember removes the watermarks, after locking their rows as the flush of
// receipts does.
func forgetMember(ctx context.Context, queries *db.Queries, person uuid.UUID, conversations []uuid.UUID) error {
	people := make([]uuid.UUID, len(conversations))
	for i := range people {
		people[i] = person
	}
	if err := queries.MemberLock(ctx, db.MemberLockParams{ConversationIds: conversations, UserIds: people}); err != nil {
		return fmt.Errorf("lock the person's places: %w", err)
	}
	if err := queries.MemberForget(ctx, person); err != nil {
		return fmt.Errorf("remove watermarks: %w", err)
	}
	return nil
}
