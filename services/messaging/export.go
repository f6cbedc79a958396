package messaging

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/portability"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

const (
	// exportPage conversations, or entries, are read by one query. Between two of
	// them no connection is held: the reader may be slow.
	exportPage = 200
	// otherEntry is an entry of a kind that this release does not know.
	otherEntry = "other"
)

// exportedConversation is a line of conversations.ndjson.
type exportedConversation struct {
	ID           string    `json:"id"`
	Kind         string    `json:"kind"`
	MemberIDs    []string  `json:"member_ids,omitempty"`
	CreatedAt    time.Time `json:"created_at"`
	LastAt       time.Time `json:"last_at"`
	Closed       bool      `json:"closed"`
	JoinSeq      int64     `json:"join_seq"`
	LeftSeq      int64     `json:"left_seq"`
	ReadSeq      int64     `json:"read_seq"`
	DeliveredSeq int64     `json:"delivered_seq"`
}

// exportedEntry is a line of messages.ndjson.
type exportedEntry struct {
	ConversationID  string    `json:"conversation_id"`
	Seq             int64     `json:"seq"`
	Kind            string    `json:"kind"`
	SenderID        string    `json:"sender_id"`
	CreatedAt       time.Time `json:"created_at"`
	ClientMessageID string    `json:"client_message_id,omitempty"`
	Text            string    `json:"text,omitempty"`
}

// ExportPerson implements the RPC. What others wrote to the person is among it, as
// the person sees it in the app.
func (s *Service) ExportPerson(ctx context.Context, req *portabilityv1.ExportPersonRequest, stream *connect.ServerStream[portabilityv1.ExportPersonResponse]) error {
	person, err := parseID(req.GetUserId())
	if err != nil {
		return err
	}
	files := portability.To(stream.Send)
	if err := files.Begin("conversations.ndjson"); err != nil {
		return err
	}
	err = s.eachConversation(ctx, person, func(c db.PersonConversationsRow) error {
		return files.Line(toExportedConversation(c))
	})
	if err != nil {
		return err
	}
	if err := files.Begin("messages.ndjson"); err != nil {
		return err
	}
	err = s.eachConversation(ctx, person, func(c db.PersonConversationsRow) error {
		return s.exportEntries(ctx, c, person, files)
	})
	if err != nil {
		return err
	}
	return files.Flush()
}

// eachConversation calls do with every conversation of a person, page by page.
func (s *Service) eachConversation(ctx context.Context, person uuid.UUID, do func(db.PersonConversationsRow) error) error {
	after := uuid.Nil
	for {
		rows, err := s.queries.PersonConversations(ctx, db.PersonConversationsParams{UserID: person, AfterID: after, PageSize: exportPage})
		if err != nil {
			return fmt.Errorf("read a page of conversations: %w", err)
		}
		for _, row := range rows {
			if err := do(row); err != nil {
				return err
			}
		}
		if len(rows) < exportPage {
			return nil
		}
		after = rows[len(rows)-1].ID
	}
}

// exportEntries writes the part of a log that the person may see.
func (s *Service) exportEntries(ctx context.Context, c db.PersonConversationsRow, person uuid.UUID, files *portability.Files) error {
	for from := c.JoinSeq; from <= c.HeadSeq; from += exportPage {
		entries, err := s.run(ctx, c.ID, from, min(from+exportPage-1, c.HeadSeq))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := files.Line(toExportedEntry(e, person)); err != nil {
				return err
			}
		}
	}
	return nil
}

func toExportedConversation(c db.PersonConversationsRow) exportedConversation {
	out := exportedConversation{
		ID: c.ID.String(), Kind: "unknown", CreatedAt: c.CreatedAt.UTC(), LastAt: c.LastAt.UTC(), Closed: c.Closed,
		JoinSeq: c.JoinSeq, LeftSeq: c.LeftSeq, ReadSeq: c.ReadSeq, DeliveredSeq: c.DeliveredSeq,
	}
	if messagingv1.ConversationKind(c.Kind) == messagingv1.ConversationKind_CONVERSATION_KIND_DIRECT {
		out.Kind = "direct"
	}
	for _, member := range pair(c.DirectLow, c.DirectHigh) {
		out.MemberIDs = append(out.MemberIDs, member.String())
	}
	return out
}

func toExportedEntry(e *messagingv1.Entry, person uuid.UUID) exportedEntry {
	out := exportedEntry{
		ConversationID: e.GetConversationId(), Seq: e.GetSeq(), Kind: otherEntry, SenderID: e.GetSenderId(),
		CreatedAt: e.GetCreatedAt().AsTime(),
	}
	switch {
	case e.GetMessage() != nil:
		out.Kind, out.Text = "message", e.GetMessage().GetText()
	case e.GetStarted() != nil:
		out.Kind = "started"
	}
	if e.GetSenderId() == person.String() { // another's device made the others
		out.ClientMessageID = e.GetClientMessageId()
	}
	return out
}
