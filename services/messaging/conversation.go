package messaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

var (
	errConversationNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND, "no such conversation")
	errNotAMember           = rpc.Error(connect.CodePermissionDenied, errorv1.Reason_REASON_NOT_A_MEMBER, "you are not a member of this conversation any more")
	errSelfConversation     = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_SELF_CONVERSATION, "a conversation needs somebody else")
	errUserNotFound         = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND, "no such person")
)

// firstSeq is that of the entry with which every log begins. It says who started
// the conversation and is not a message.
const firstSeq = 1

const conversationsPage = "messaging.conversations"

// CreateDirectConversation implements the RPC.
func (s *Service) CreateDirectConversation(ctx context.Context, req *messagingv1.CreateDirectConversationRequest) (*messagingv1.CreateDirectConversationResponse, error) {
	caller := identity.From(ctx).UserID
	other, err := parseID(req.GetUserId())
	if err != nil {
		return nil, err
	}
	if other == caller {
		return nil, errSelfConversation
	}
	low, high := ordered(caller, other)
	id, err := s.queries.ConversationIDByPair(ctx, db.ConversationIDByPairParams{Low: low, High: high})
	if errors.Is(err, pgx.ErrNoRows) {
		id, err = s.startDirect(ctx, caller, other)
	}
	if err != nil {
		return nil, err
	}
	seen, err := s.see(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	return &messagingv1.CreateDirectConversationResponse{Conversation: seen}, nil
}

// startDirect makes the conversation of two people and tells both, or returns the
// one that was made meanwhile.
func (s *Service) startDirect(ctx context.Context, starter, other uuid.UUID) (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, fmt.Errorf("make conversation id: %w", err)
	}
	made := false
	err = s.outbox.Tx(ctx, func(tx pgx.Tx, emit func(...*eventv1.Event) error) error {
		if err := lockPeople(ctx, db.New(tx), starter, other); err != nil {
			return err
		}
		if made, err = insertDirect(ctx, db.New(tx), id, starter, other, s.clock.Now()); err != nil || !made {
			return err
		}
		return emit(conversationCreated(id, starter, other))
	})
	if err != nil {
		return uuid.Nil, fmt.Errorf("start conversation: %w", err)
	}
	if !made {
		low, high := ordered(starter, other)
		return s.queries.ConversationIDByPair(ctx, db.ConversationIDByPairParams{Low: low, High: high})
	}
	err = s.pushConversations(ctx, db.ConversationSeenParams{
		ViewerIds: []uuid.UUID{starter, other}, ConversationIds: []uuid.UUID{id, id},
	})
	if err != nil {
		s.log.WarnContext(ctx, "push new conversation", "error", err)
	}
	return id, nil
}

// lockPeople returns USER_NOT_FOUND unless the other person is known, and neither
// was deleted. The starter may be unknown: its account.registered is on the way.
func lockPeople(ctx context.Context, q *db.Queries, starter, other uuid.UUID) error {
	people, err := q.PersonsLock(ctx, []uuid.UUID{starter, other})
	if err != nil {
		return fmt.Errorf("look for the people: %w", err)
	}
	known := false
	for _, p := range people {
		if p.Forgotten {
			return errUserNotFound
		}
		known = known || p.ID == other
	}
	if !known {
		return errUserNotFound
	}
	return nil
}

// insertDirect writes the conversation, its members and the first entry of its
// log, all in tx. False says that the pair has a conversation already.
func insertDirect(ctx context.Context, q *db.Queries, id, starter, other uuid.UUID, at time.Time) (bool, error) {
	low, high := ordered(starter, other)
	inserted, err := q.ConversationInsertDirect(ctx, db.ConversationInsertDirectParams{
		ID: id, Kind: int16(messagingv1.ConversationKind_CONVERSATION_KIND_DIRECT), Low: low, High: high, At: at,
	})
	if err != nil || inserted == 0 {
		return false, err
	}
	for _, m := range []db.MemberInsertParams{
		{ConversationID: id, UserID: starter, JoinSeq: firstSeq, SeenSeq: firstSeq},
		{ConversationID: id, UserID: other, JoinSeq: firstSeq},
	} {
		if err := q.MemberInsert(ctx, m); err != nil {
			return false, fmt.Errorf("insert member: %w", err)
		}
	}
	err = q.EntryInsertFirst(ctx, db.EntryInsertFirstParams{
		ConversationID: id, At: at, Kind: int16(kindStarted), SenderID: starter, Payload: []byte{}, // Started has no fields
	})
	if err != nil {
		return false, fmt.Errorf("insert the first entry: %w", err)
	}
	return true, nil
}

// GetConversation implements the RPC.
func (s *Service) GetConversation(ctx context.Context, req *messagingv1.GetConversationRequest) (*messagingv1.GetConversationResponse, error) {
	id, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	seen, err := s.see(ctx, identity.From(ctx).UserID, id)
	if err != nil {
		return nil, err
	}
	return &messagingv1.GetConversationResponse{Conversation: seen}, nil
}

// see returns one conversation as the viewer sees it.
func (s *Service) see(ctx context.Context, viewer, id uuid.UUID) (*messagingv1.Conversation, error) {
	seen, err := s.recent.see(ctx, db.ConversationSeenParams{
		ViewerIds: []uuid.UUID{viewer}, ConversationIds: []uuid.UUID{id},
	})
	if err != nil {
		return nil, err
	}
	c, ok := seen[place{id, viewer}]
	if !ok {
		return nil, errConversationNotFound
	}
	return c, nil
}

// lastActive is the position after a page of ListConversations.
type lastActive struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

// ListConversations implements the RPC.
func (s *Service) ListConversations(ctx context.Context, req *messagingv1.ListConversationsRequest) (*messagingv1.ListConversationsResponse, error) {
	caller := identity.From(ctx).UserID
	before, err := page.Decode[lastActive](conversationsPage, req.GetPageToken(), caller)
	if err != nil {
		return nil, err
	}
	if before == nil {
		before = &lastActive{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	}
	size := page.Size(req.GetPageSize(), 20, 100)
	ids, err := s.queries.ConversationPage(ctx, db.ConversationPageParams{
		UserID: caller, BeforeAt: before.At, BeforeID: before.ID, PageSize: size + 1,
	})
	if err != nil {
		return nil, fmt.Errorf("read a page of conversations: %w", err)
	}
	resp := &messagingv1.ListConversationsResponse{}
	if len(ids) > int(size) {
		ids = ids[:size]
		last := ids[size-1]
		if resp.NextPageToken, err = page.Encode(conversationsPage, lastActive{last.LastAt, last.ID}, caller); err != nil {
			return nil, err
		}
	}
	params := db.ConversationSeenParams{}
	for _, row := range ids {
		params.ViewerIds = append(params.ViewerIds, caller)
		params.ConversationIds = append(params.ConversationIds, row.ID)
	}
	seen, err := s.recent.see(ctx, params)
	if err != nil {
		return nil, err
	}
	for _, row := range ids {
		if c, ok := seen[place{row.ID, caller}]; ok { // always: member rows are never deleted
			resp.Conversations = append(resp.Conversations, c)
		}
	}
	return resp, nil
}

// ordered returns two ids, the smaller first, as PostgreSQL compares them.
func ordered(a, b uuid.UUID) (low, high uuid.UUID) {
	if bytes.Compare(a[:], b[:]) < 0 {
		return a, b
	}
	return b, a
}

// parseID reads an id that the validation of requests let through.
func parseID(raw string) (uuid.UUID, error) {
	id, err := uuid.Parse(raw)
	if err != nil {
		return uuid.Nil, fmt.Errorf("parse an id that was validated: %w", err)
	}
	return id, nil
}

// toConversation leaves out the last entry of those who have not left.
func toConversation(r db.ConversationSeenRow) *messagingv1.Conversation {
	c := &messagingv1.Conversation{
		Id:          r.ID.String(),
		Kind:        messagingv1.ConversationKind(r.Kind),
		HeadSeq:     r.HeadSeq,
		HeadOrdinal: r.HeadOrdinal,
		CreatedAt:   timestamppb.New(r.CreatedAt),
		LastAt:      timestamppb.New(r.LastAt),
		Unread:      max(0, r.HeadOrdinal-r.ReadOrdinal),
		Closed:      r.Closed,
		Members: []*messagingv1.Member{{
			UserId: r.ViewerID.String(), JoinSeq: r.JoinSeq, LeftSeq: r.LeftSeq, ReadSeq: r.ReadSeq, DeliveredSeq: r.DeliveredSeq,
		}},
	}
	if r.OtherID != nil {
		c.Members = append(c.Members, &messagingv1.Member{
			UserId: r.OtherID.String(), JoinSeq: *r.OtherJoinSeq, LeftSeq: *r.OtherLeftSeq,
			ReadSeq: *r.OtherReadSeq, DeliveredSeq: *r.OtherDeliveredSeq,
		})
	}
	if r.EntryKind != 0 { // 0: see recent, or its partition is gone
		c.LastEntry = toEntry(logEntry{
			conversationID: r.ID, seq: r.HeadSeq, ordinal: r.HeadOrdinal, senderID: r.EntrySenderID,
			createdAt: r.LastAt, clientMessageID: r.EntryClientMessageID, kind: entryKind(r.EntryKind), payload: r.EntryPayload,
		})
	}
	return c
}
