package auth_test

import (
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// nextPassword is another good one.
const nextPassword = "paper-bassoon-11"

func changePassword(t *testing.T, p *someone, current, next string) (*authv1.ChangePasswordResponse, error) {
	t.Helper()
	return p.account.ChangePassword(t.Context(), &authv1.ChangePasswordRequest{CurrentPassword: current, NewPassword: next})
}

func TestChangePassword(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)

	t.Run("EndsOtherSessionsAndTellsThePerson", func(t *testing.T) {
		t.Parallel()
		anna := newcomer(t, h, client, "anna")
		other := again(t, h, client, "anna", password)
		mailedCode(t, h, "anna@example.org") // of the registration
		res, err := changePassword(t, anna, password, nextPassword)
		require.NoError(t, err)
		require.EqualValues(t, 1, res.GetRevokedSessions())
		other.ended(t)
		anna.lives(t)
		_, err = logIn(t.Context(), client, "anna", password)
		wrongPassword(t, err)
		again(t, h, client, "anna", nextPassword)
		require.Contains(t, h.Mail.Next("anna@example.org").Subject, "password")
		anna.recorded(t, "password.changed", "")
		own, err := anna.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
		require.NoError(t, err)
		require.True(t, h.Clock.Now().Equal(own.GetPasswordChangedAt().AsTime()))
		var waiting int
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM mail_notice WHERE account_id = $1", anna.id).Scan(&waiting))
		require.Zero(t, waiting, "a notice that the queue has is deleted")
	})
	t.Run("NeedsTheCurrentOne", func(t *testing.T) {
		t.Parallel()
		berta := newcomer(t, h, client, "berta")
		other := again(t, h, client, "berta", password)
		limitedAfterFive(t, wrongPassword, func() error {
			_, err := changePassword(t, berta, "not-the-password", nextPassword)
			return err
		})
		other.lives(t)
		berta.recorded(t, "password.changed", "CREDENTIALS_INVALID")
	})
	t.Run("RefusesAWeakOne", func(t *testing.T) {
		t.Parallel()
		cleo := newcomer(t, h, client, "cleo-the-cat")
		for _, weak := range []string{"iloveyou", "cleo-the-cat", "Trustno1"} {
			_, err := changePassword(t, cleo, password, weak)
			requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PASSWORD_WEAK)
		}
	})
	t.Run("OfTwoAtOnceOneWins", func(t *testing.T) {
		t.Parallel()
		doro := newcomer(t, h, client, "doro")
		second := again(t, h, client, "doro", password)
		var group sync.WaitGroup
		errs := make([]error, 2)
		for i, p := range []*someone{doro, second} {
			group.Go(func() {
				_, errs[i] = p.account.ChangePassword(t.Context(), &authv1.ChangePasswordRequest{
					CurrentPassword: password, NewPassword: nextPassword + string(rune('a'+i)),
				})
			})
		}
		group.Wait()
		won := 0
		for i := range errs {
			_, err := logIn(t.Context(), client, "doro", nextPassword+string(rune('a'+i)))
			if errs[i] == nil {
				require.NoError(t, err)
				won++
			}
		}
		require.Equal(t, 1, won, "%v", errs)
	})
}

// A log-in whose password was compared before a change and whose session begins after it does not survive: it is
// either seen by the change or refused.
func TestLogInsRaceAPasswordChange(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_LOGIN_LIMIT=0", "PARLEY_AUTH_SESSIONS_PER_ACCOUNT=1000")
	anna := newcomer(t, h, client, "anna")
	var group sync.WaitGroup
	const many = 24
	for range many {
		group.Go(func() { _, _ = logIn(t.Context(), client, "anna", password) })
	}
	group.Go(func() {
		_, err := changePassword(t, anna, password, nextPassword)
		if err != nil {
			t.Errorf("change the password: %v", err)
		}
	})
	group.Wait()
	require.Len(t, anna.list(t), 1, "no session of the old password lives")
}
