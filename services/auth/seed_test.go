package auth_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth"
)

func TestSeeder(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	seeder, err := auth.NewSeeder(h.DB("auth"), []byte(strings.Repeat("s", 32)), h.Clock, testkit.Logger(t))
	require.NoError(t, err)
	const n = 260 // more than one batch
	seeded, err := seeder.Accounts(t.Context(), "Crowd", n)
	require.NoError(t, err)
	require.Len(t, seeded, n)

	t.Run("AccountsAreMarkedAndHaveASession", func(t *testing.T) {
		t.Parallel()
		var accounts, sessions, events int
		row := h.DB("auth").QueryRow(t.Context(), `SELECT count(*), count(s.id) FROM account a JOIN session s ON s.account_id = a.id WHERE password_hash = 'seeded:'`)
		require.NoError(t, row.Scan(&accounts, &sessions))
		require.Equal(t, n, accounts)
		require.Equal(t, n, sessions)
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&events))
		require.Equal(t, 2, events, "a row with many events per batch")
	})
	t.Run("NobodyCanLogIn", func(t *testing.T) {
		t.Parallel()
		for _, guess := range []string{"seeded:", "seeded", password} {
			_, err := logIn(t.Context(), client, fmt.Sprintf("crowd-%d", n), guess)
			requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
		}
	})
	t.Run("ItsKeySignsTokensThatTheServiceTakes", func(t *testing.T) {
		t.Parallel()
		key, err := seeder.SigningKey(t.Context())
		require.NoError(t, err)
		now := h.Clock.Now()
		raw, err := token.SignAccess(key, token.Claims{
			UserID: seeded[0].UserID, SessionID: seeded[0].SessionID, Role: identity.RoleUser, IssuedAt: now, ExpiresAt: now.Add(5 * time.Minute),
		}, "parley", "parley")
		require.NoError(t, err)
		claims, err := verifier(h).Verify(t.Context(), raw)
		require.NoError(t, err)
		require.Equal(t, seeded[0].UserID, claims.UserID)
	})
	t.Run("ATakenNameFails", func(t *testing.T) {
		t.Parallel()
		_, err := seeder.Accounts(t.Context(), "crowd", 1)
		require.Error(t, err)
	})
	t.Run("AnotherKeyOpensNothing", func(t *testing.T) {
		t.Parallel()
		other, err := auth.NewSeeder(h.DB("auth"), []byte(strings.Repeat("x", 32)), h.Clock, testkit.Logger(t))
		require.NoError(t, err)
		_, err = other.SigningKey(t.Context())
		require.ErrorContains(t, err, "KEY_ENCRYPTION_KEY")
	})
	t.Run("IdsAreAllDifferent", func(t *testing.T) {
		t.Parallel()
		ids := map[uuid.UUID]bool{}
		for _, one := range seeded {
			ids[one.UserID], ids[one.SessionID] = true, true
		}
		require.Len(t, ids, 2*n)
	})
}
