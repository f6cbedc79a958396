package chaos //nolint:testpackage // it uses the people of the crowd

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/test/e2e/system"
)

// releasedWithin is ten seconds, for which a transaction may rest, and what a busy machine takes beside it.
const releasedWithin = 30 * time.Second

// A replica that stands still in the middle of a transaction, with the row of a sender locked, as the flush of read marks has
// it, holds up that sender for as long as a transaction may rest; then PostgreSQL ends it. Which moment a SIGSTOP meets is
// chance, so here the test itself is that replica.
func TestAFrozenHolderIsReleased(t *testing.T) {
	t.Parallel()
	sys := system.Start(t, system.Separate, system.Options{Gateways: 1, Messagings: 1, Straight: true})
	people := make([]*person, 4)
	for i := range people {
		var err error
		people[i], err = register(t.Context(), sys.Gateways)
		require.NoError(t, err)
	}
	held, err := people[0].talkTo(t.Context(), people[1])
	require.NoError(t, err)
	other, err := people[2].talkTo(t.Context(), people[3])
	require.NoError(t, err)

	conn, err := pgx.Connect(t.Context(), sys.Database("messaging"))
	require.NoError(t, err)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	rows, err := tx.Exec(t.Context(), `SELECT FROM member WHERE conversation_id = $1 AND user_id = $2 FOR NO KEY UPDATE`, held, people[0].id)
	require.NoError(t, err)
	require.EqualValues(t, 1, rows.RowsAffected())

	began := time.Now()
	sent := make(chan error, 1)
	go func() { sent <- people[0].write(t.Context(), held, "behind the frozen one") }()
	require.NoError(t, people[2].write(t.Context(), other, "of no concern to it"))
	t.Logf("another conversation went on after %s", time.Since(began))
	require.NoError(t, <-sent)
	took := time.Since(began)
	t.Logf("the sender whose row was locked was served after %s", took)
	require.Greater(t, took, time.Second, "the row was locked")
	require.Less(t, took, releasedWithin)
	_, err = tx.Exec(t.Context(), "SELECT 1")
	require.Error(t, err, "PostgreSQL has ended the transaction")
}
