// Package messaging owns conversations: append-only logs, who may see which part
// of them, and how far each member has read.
//
// Invariants: seq is dense over all that changes a conversation, and rises in the
// order of commits; an answered message is committed; one client message id of a
// sender is in the log at most once within seven days; a watermark never falls,
// until its member is forgotten; what Sync does not tell now has a transaction id that its next cursor covers.
// Everything rests on row locks in PostgreSQL, so any number of replicas work on
// the same conversations, and no memory has to agree.
//
// It never asks another service on behalf of a single send, never pushes what is
// not committed, and never puts the text of a message into an event.
package messaging

import (
	"log/slog"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

var (
	_ messagingv1connect.MessagingServiceHandler   = (*Service)(nil)
	_ messagingv1connect.PortabilityServiceHandler = (*Service)(nil)
)

// Service implements messagingv1connect.MessagingServiceHandler and
// PortabilityServiceHandler.
type Service struct {
	queries    *db.Queries
	outbox     *outbox.Outbox
	clock      clock.Clock
	log        *slog.Logger
	pusher     *pusher
	committers []*committer
	receipts   *receipts
	syncs      *syncer
	recent     *recent
	typing     *typists
}

// committer returns the queue of a conversation, always the same one.
func (s *Service) committer(conversationID uuid.UUID) *committer {
	// The last bytes of an id are random, in every version of UUID that is made here.
	low := uint(conversationID[13])<<16 | uint(conversationID[14])<<8 | uint(conversationID[15])
	return s.committers[low%uint(len(s.committers))]
}

// waiting is how many sends are queued.
func (s *Service) waiting() int64 {
	var n int
	for _, c := range s.committers {
		n += c.queue.length()
	}
	return int64(n)
}
