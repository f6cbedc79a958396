package provision_test

import (
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/stack/provision"
	"github.com/parleychat/parley/pkg/testkit"
)

func TestEnsureService(t *testing.T) {
	t.Parallel()
	server := testkit.PrivatePostgres(t)
	for range 2 { // the second time, everything is there
		ink, err := provision.EnsureService(t.Context(), server.AdminURL(), "parley", "ink", "secret: ü/?")
		require.NoError(t, err)
		conn, err := pgx.Connect(t.Context(), ink)
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS pens (id int)")
		require.NoError(t, err)
		var database, schema string
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT current_database(), current_schema()").Scan(&database, &schema))
		require.Equal(t, "parley", database)
		require.Equal(t, "ink", schema)
		require.NoError(t, conn.Close(t.Context()))
	}
	changed, err := provision.EnsureService(t.Context(), server.AdminURL(), "parley", "ink", "other")
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), changed)
	require.NoError(t, err, "the new password holds")
	require.NoError(t, conn.Close(t.Context()))
	wrong, err := url.Parse(changed)
	require.NoError(t, err)
	wrong.User = url.UserPassword(wrong.User.Username(), "secret: ü/?")
	_, err = pgx.Connect(t.Context(), wrong.String())
	require.Error(t, err, "passwords are checked")
}
