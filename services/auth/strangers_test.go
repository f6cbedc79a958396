package auth_test

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// reset sets a password by the code that is mailed to an address.
func (a *abroad) reset(p *someone, login, address string) {
	a.t.Helper()
	_, err := p.account.RequestPasswordReset(a.t.Context(), &authv1.RequestPasswordResetRequest{Login: login})
	require.NoError(a.t, err)
	_, err = p.account.ResetPassword(a.t.Context(), &authv1.ResetPasswordRequest{
		Login: login, Code: mailedCode(a.t, a.Harness, address), NewPassword: nextPassword,
	})
	require.NoError(a.t, err)
}

// told requires that the next mails to an address have these subjects, in any order.
func (a *abroad) told(address string, subjects ...string) {
	a.t.Helper()
	var all []string
	for range subjects {
		all = append(all, a.Mail.Next(address).Subject)
	}
	for _, subject := range subjects {
		require.Contains(a.t, strings.Join(all, "\n"), subject)
	}
}

// Whoever makes an account with somebody else's address leaves nothing there to come back with, once its owner has
// reset the password.
func TestTheOwnerOfAnAddressGetsTheAccountAlone(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)

	t.Run("WithoutTheIdentity", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		offer, err := a.visit("house", person1("mallory"))
		require.NoError(t, err)
		made, err := a.oauth.RegisterWithOAuth(t.Context(), &authv1.RegisterWithOAuthRequest{
			Ticket: offer.GetRegistration().GetTicket(), Username: "anna", Email: "anna@example.org",
		})
		require.NoError(t, err)
		mailedCode(t, a.Harness, "anna@example.org")
		mallory := logged(a.Harness, made.GetUserId(), made.GetTokens())
		a.reset(mallory, "anna@example.org", "anna@example.org")
		mallory.ended(t)
		owner := again(t, a.Harness, a.auth, "anna@example.org", nextPassword)
		require.Empty(t, a.identities(owner).GetIdentities())
		require.Equal(t, "reset", owner.recorded(t, "identity.unlinked", "").GetDetails()["by"])
		a.told("anna@example.org", "The House was removed", "password")
		back, err := a.visit("house", person1("mallory"))
		require.NoError(t, err)
		require.Nil(t, back.GetLogIn(), "the way in is gone")
	})
	t.Run("WithoutTheSecondFactor", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		mallory := newcomer(t, a.Harness, a.auth, "berta")
		mailedCode(t, a.Harness, "berta@example.org")
		enrol(t, a.Harness, mallory)
		a.Mail.Next("berta@example.org")
		a.reset(mallory, "berta@example.org", "berta@example.org")
		owner := again(t, a.Harness, a.auth, "berta@example.org", nextPassword)
		owner.recorded(t, "second_factor.off", "")
		a.told("berta@example.org", "is off", "password")
	})
	t.Run("AVerifiedAddressKeepsThem", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		cleo := a.settle("house", person1("cleo"), "cleo")
		a.reset(cleo, "cleo", "cleo@example.org")
		require.Len(t, a.identities(again(t, a.Harness, a.auth, "cleo", nextPassword)).GetIdentities(), 1)
	})
}

// Who has no password proves by a log-in just now who sits there.
func TestAnAccountWithoutAPasswordIsWhole(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	anna := a.settle("house", person1("anna"), "anna")
	enrolled, err := anna.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{})
	require.NoError(t, err)
	phone := app{enrolled.GetSecret(), a.Harness}
	_, err = anna.factor.ConfirmSecondFactor(t.Context(), &authv1.ConfirmSecondFactorRequest{Code: phone.code(t)})
	require.NoError(t, err)
	_, err = anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{NewEmail: "anna@home.example.org", SecondFactorCode: phone.next(t)})
	require.NoError(t, err)
	_, err = anna.account.ConfirmEmailChange(t.Context(), &authv1.ConfirmEmailChangeRequest{Code: mailedCode(t, a.Harness, "anna@home.example.org")})
	require.NoError(t, err)
	proof := &authv1.SecondFactorProof{Factor: &authv1.SecondFactorProof_Code{Code: phone.next(t)}}
	_, err = anna.factor.DisableSecondFactor(t.Context(), &authv1.DisableSecondFactorRequest{Proof: proof})
	require.NoError(t, err)

	a.Clock.Advance(11 * time.Minute)
	tokens, err := refresh(t.Context(), a.auth, anna.tokens.GetRefreshToken())
	require.NoError(t, err)
	anna = logged(a.Harness, anna.id, tokens)
	_, err = anna.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{})
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
	_, err = anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{NewEmail: "anna@work.example.org"})
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
}
