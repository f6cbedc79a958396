package messaging_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging"
)

// PostgreSQL gives out transaction ids again that nothing on its disk tells of: those
// of transactions that rolled back just before a crash. A cursor from before it
// must not lie above a message that is stored under such an id.
func TestSyncAfterACrashThatReusesTransactionIDs(t *testing.T) {
	t.Parallel()
	def := messaging.Definition()
	server := testkit.PrivatePostgres(t)
	w := start(t, servicetest.Options{
		Clock:    clock.System(),
		Database: server.NewDatabase(t, testkit.Schema{Service: def.Name, Migrations: def.Migrations}),
	}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	server1 := admin(t, server)
	// The writer of the log would else save the ids within 200 ms.
	for _, sql := range []string{"ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()"} {
		_, err := server1.Exec(ctx, sql)
		require.NoError(t, err)
	}
	var cursor string
	var told, next uint64
	// Any commit saves the ids before it, and other work goes on: try until none came between.
	require.Eventually(t, func() bool {
		conn := admin(t, server)
		burn(t, conn, 300)
		told = transactionID(t, conn)
		res, err := b.Sync(ctx, &messagingv1.SyncRequest{})
		if err != nil {
			return false // the service has not noticed yet that the database died in the last try
		}
		cursor = res.GetNextCursor()
		server.Kill9()
		server.Restart()
		next = transactionID(t, admin(t, server))
		return next < told
	}, time.Minute, time.Millisecond, "ids are given out again")

	req := message(id, "under an old id")
	require.Eventually(t, func() bool { _, err := a.SendMessage(ctx, req); return err == nil }, 20*time.Second, 20*time.Millisecond)
	conn := admin(t, server)
	for transactionID(t, conn) <= told+10 { // the cursor is no longer from the future
		burn(t, conn, 50)
	}
	res, err := b.Sync(ctx, &messagingv1.SyncRequest{Cursor: cursor})
	require.NoError(t, err)
	require.Len(t, res.GetConversations(), 1, "the message is told")
	require.EqualValues(t, 2, res.GetConversations()[0].GetHeadSeq())
}

func admin(t *testing.T, server *testkit.PostgresServer) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.AdminURL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// transactionID takes one, and leaves nothing on the disk.
func transactionID(t *testing.T, conn *pgx.Conn) uint64 {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	var text string
	require.NoError(t, tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&text))
	require.NoError(t, tx.Rollback(t.Context()))
	id, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err)
	return id
}

func burn(t *testing.T, conn *pgx.Conn, n int) {
	t.Helper()
	for range n {
		transactionID(t, conn)
	}
}
