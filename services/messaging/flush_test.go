package messaging

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

// A process that is frozen in the middle of a flush holds the rows of members. The
// others must be able to write within the time that a caller waits.
func TestFrozenFlushGivesItsRowsBack(t *testing.T) {
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

	tx, err := h.DB("messaging").Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	err = lockMarked(t.Context(), db.New(tx), db.MemberLockParams{
		ConversationIds: []uuid.UUID{conversation, conversation}, UserIds: []uuid.UUID{a, b},
	})
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	_, err = client.SendMessage(ctx, &messagingv1.SendMessageRequest{
		ConversationId: conversation.String(), ClientMessageId: uuid.NewString(), Text: "through",
	})
	require.NoError(t, err)
	require.Error(t, tx.Commit(t.Context()), "the flush goes on although its rows were taken from it")
}

// While the database is away a flush tries once and says so once, however many
// marks wait, and loses none of them.
func TestFlushStopsWhenTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig("postgres://localhost/nowhere")
	require.NoError(t, err)
	var tries atomic.Int32
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		tries.Add(1)
		return errors.New("away")
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	var log bytes.Buffer
	m, err := newMetrics()
	require.NoError(t, err)
	logger := slog.New(slog.NewTextHandler(&log, nil))
	r := newReceipts(outbox.New(pool, nil, "messaging", clock.System(), logger), nil, m, clock.System(), logger, time.Second)
	const waiting = 5*flushChunk + 1
	for range waiting {
		require.NoError(t, r.add(place{conversationID: uuid.New(), userID: uuid.New()}, mark{read: 1}))
	}
	before := tries.Load() // the pool may have tried by itself
	r.flush(t.Context())
	require.LessOrEqual(t, tries.Load()-before, int32(2))
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
	require.Len(t, r.marks, waiting)
}
