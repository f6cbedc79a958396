package messaging

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

var errResetRequired = rpc.Error(connect.CodeOutOfRange, errorv1.Reason_REASON_RESET_REQUIRED,
	"the log ends before this seq: start again with Sync")

const messagesPage = "messaging.messages"

// entryKind says what an entry is: the number of its field in Entry.body.
type entryKind int16

const (
	kindMessage entryKind = 10
	kindStarted entryKind = 11
)

// logEntry is an entry as the database keeps it.
type logEntry struct {
	conversationID  uuid.UUID
	seq, ordinal    int64
	senderID        uuid.UUID
	createdAt       time.Time
	clientMessageID *uuid.UUID // nil for what no client has sent
	kind            entryKind
	payload         []byte
}

// ListMessages implements the RPC. Seqs are dense, so a page is a range of them:
// it may hold fewer messages than asked for where other entries lie between.
func (s *Service) ListMessages(ctx context.Context, req *messagingv1.ListMessagesRequest) (*messagingv1.ListMessagesResponse, error) {
	caller := identity.From(ctx).UserID
	id, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	before, err := page.Decode[int64](messagesPage, req.GetPageToken(), caller, id)
	if err != nil {
		return nil, err
	}
	window, err := s.window(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	// The first entry of a log is never a message: no page for it alone.
	oldest := max(window.JoinSeq, firstSeq+1)
	to := window.HeadSeq
	if before != nil {
		to = min(to, *before-1)
	}
	from := max(oldest, to-int64(page.Size(req.GetPageSize(), 50, 100))+1)
	resp := &messagingv1.ListMessagesResponse{}
	if to < oldest {
		return resp, nil
	}
	entries, err := s.run(ctx, id, from, to)
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(entries) {
		if e.GetMessage() != nil {
			resp.Entries = append(resp.Entries, e)
		}
	}
	if from > oldest {
		if resp.NextPageToken, err = page.Encode(messagesPage, from, caller, id); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListEvents implements the RPC.
func (s *Service) ListEvents(ctx context.Context, req *messagingv1.ListEventsRequest) (*messagingv1.ListEventsResponse, error) {
	id, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	window, err := s.window(ctx, identity.From(ctx).UserID, id)
	if err != nil {
		return nil, err
	}
	if req.GetAfterSeq() > window.HeadSeq {
		return nil, errResetRequired
	}
	from := max(req.GetAfterSeq()+1, window.JoinSeq)
	to := min(window.HeadSeq, from+int64(page.Size(req.GetLimit(), 100, 200))-1)
	resp := &messagingv1.ListEventsResponse{HeadSeq: window.HeadSeq, HasMore: to < window.HeadSeq}
	if from > to {
		return resp, nil
	}
	if resp.Entries, err = s.run(ctx, id, from, to); err != nil {
		return nil, err
	}
	return resp, nil
}

// window is the part of a log that the caller may see: seqs from JoinSeq to
// HeadSeq. The head only rises, so what is read by it later is still right.
func (s *Service) window(ctx context.Context, caller, id uuid.UUID) (db.MemberWindowRow, error) {
	w, err := s.queries.MemberWindow(ctx, db.MemberWindowParams{ConversationID: id, UserID: caller})
	if errors.Is(err, pgx.ErrNoRows) {
		return w, errConversationNotFound
	}
	if err != nil {
		return w, fmt.Errorf("read membership: %w", err)
	}
	return w, nil
}

// run reads the entries from one seq to another, both included.
func (s *Service) run(ctx context.Context, id uuid.UUID, from, to int64) ([]*messagingv1.Entry, error) {
	rows, err := s.queries.EntryRange(ctx, db.EntryRangeParams{ConversationID: id, FromSeq: from, ToSeq: to})
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	entries := make([]*messagingv1.Entry, len(rows))
	for i, r := range rows {
		entries[i] = toEntry(logEntry{
			conversationID: id, seq: r.Seq, ordinal: r.Ordinal, senderID: r.SenderID, createdAt: r.CreatedAt,
			clientMessageID: r.ClientMessageID, kind: entryKind(r.Kind), payload: r.Payload,
		})
	}
	return entries, nil
}

// toEntry keeps the seq of an entry whose kind a newer release wrote, or whose
// payload cannot be read: a body that is not set is not shown, and no hole.
func toEntry(e logEntry) *messagingv1.Entry {
	out := &messagingv1.Entry{
		ConversationId: e.conversationID.String(),
		Seq:            e.seq,
		Ordinal:        e.ordinal,
		SenderId:       e.senderID.String(),
		CreatedAt:      timestamppb.New(e.createdAt),
	}
	if e.clientMessageID != nil {
		out.ClientMessageId = e.clientMessageID.String()
	}
	switch e.kind {
	case kindMessage:
		message := &messagingv1.Message{}
		if proto.Unmarshal(e.payload, message) == nil {
			out.Body = &messagingv1.Entry_Message{Message: message}
		}
	case kindStarted:
		out.Body = &messagingv1.Entry_Started{Started: &messagingv1.Started{}}
	}
	return out
}
