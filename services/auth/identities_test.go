package auth_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func (a *abroad) identities(p *someone) *authv1.ListIdentitiesResponse {
	a.t.Helper()
	res, err := a.as(p).ListIdentities(a.t.Context(), &authv1.ListIdentitiesRequest{})
	require.NoError(a.t, err)
	return res
}

func (a *abroad) unlink(p *someone, id, password string) (*authv1.UnlinkIdentityResponse, error) {
	return a.as(p).UnlinkIdentity(a.t.Context(), &authv1.UnlinkIdentityRequest{IdentityId: id, Password: password})
}

func TestLinkIdentity(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	anna := newcomer(t, a.Harness, a.auth, "anna")
	mailedCode(t, a.Harness, "anna@example.org")
	// The address is another than the account's: it plays no part.
	res, err := a.link(anna, "house", with(person1("anna"), "email", "elsewhere@example.net"))
	require.NoError(t, err)
	require.Equal(t, "elsewhere@example.net", res.GetIdentity().GetEmail())
	require.Equal(t, "house", anna.recorded(t, "identity.link_started", "").GetDetails()["provider"])
	anna.recorded(t, "identity.linked", "")
	require.Equal(t, "The House can now log in to your Parley account", a.Mail.Next("anna@example.org").Subject)

	list := a.identities(anna)
	require.True(t, list.GetPassword())
	require.Len(t, list.GetIdentities(), 1)
	require.Nil(t, list.GetIdentities()[0].GetLastUsedAt())
	back, err := a.visit("house", person1("anna"))
	require.NoError(t, err)
	require.Equal(t, anna.id, back.GetLogIn().GetUserId())
	used := a.identities(anna).GetIdentities()[0]
	require.True(t, a.Clock.Now().Equal(used.GetLastUsedAt().AsTime()))
	require.Equal(t, "anna@example.org", used.GetEmail(), "as the provider has it now")

	t.Run("OneOfEachProvider", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		_, challenge := newVerifier()
		_, err := a.as(anna).StartIdentityLink(t.Context(), &authv1.StartIdentityLinkRequest{
			Provider: "house", RedirectUri: idpReturn, ClientChallenge: challenge, Password: password,
		})
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_IDENTITY_PROVIDER_LINKED)
	})
	t.Run("OneAccountOfEachIdentity", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		ben := newcomer(t, a.Harness, a.auth, "ben")
		_, err := a.link(ben, "house", person1("anna"))
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_IDENTITY_TAKEN)
		require.Empty(t, a.identities(ben).GetIdentities())
	})
	t.Run("AsksForThePassword", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		_, challenge := newVerifier()
		_, err := a.as(anna).StartIdentityLink(t.Context(), &authv1.StartIdentityLinkRequest{
			Provider: "facebook", RedirectUri: idpReturn, ClientChallenge: challenge, Password: "a guess at it",
		})
		wrongPassword(t, err)
		anna.recorded(t, "identity.link_started", "CREDENTIALS_INVALID")
	})
	t.Run("NotForASessionThatHasEnded", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		cleo := newcomer(t, a.Harness, a.auth, "cleo")
		f := a.beginLink(cleo, "house")
		code, _ := a.idp.consent(f.url, person1("cleo"))
		_, err := cleo.auth.LogOut(t.Context(), &authv1.LogOutRequest{})
		require.NoError(t, err)
		cleo.ended(t)
		_, err = a.as(cleo).LinkIdentity(t.Context(), &authv1.LinkIdentityRequest{State: f.state, Code: code, ClientVerifier: f.verifier})
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED)
	})
}

func TestUnlinkIdentity(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)

	t.Run("EndsOtherSessions", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		anna := newcomer(t, a.Harness, a.auth, "anna")
		res, err := a.link(anna, "house", person1("anna"))
		require.NoError(t, err)
		back, err := a.visit("house", person1("anna"))
		require.NoError(t, err)
		other := logged(a.Harness, anna.id, back.GetLogIn().GetTokens())
		_, err = a.unlink(anna, res.GetIdentity().GetId(), "a guess at it")
		wrongPassword(t, err)
		done, err := a.unlink(anna, res.GetIdentity().GetId(), password)
		require.NoError(t, err)
		require.Equal(t, int32(1), done.GetRevokedSessions())
		other.ended(t)
		anna.lives(t)
		require.Equal(t, "house", anna.recorded(t, "identity.unlinked", "").GetDetails()["provider"])
		require.Empty(t, a.identities(anna).GetIdentities())
		_, err = a.visit("house", person1("anna"))
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_OAUTH_LINK_REQUIRED)
		_, err = a.unlink(anna, res.GetIdentity().GetId(), password)
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_IDENTITY_NOT_FOUND)
	})
	t.Run("OnlyOnesOwn", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		ben := newcomer(t, a.Harness, a.auth, "ben")
		res, err := a.link(ben, "house", person1("ben"))
		require.NoError(t, err)
		cleo := newcomer(t, a.Harness, a.auth, "cleo")
		for _, id := range []string{res.GetIdentity().GetId(), identityID()} {
			_, err = a.unlink(cleo, id, password)
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_IDENTITY_NOT_FOUND)
		}
		require.Len(t, a.identities(ben).GetIdentities(), 1)
	})
	t.Run("NeverTheLast", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		dora := a.settle("house", person1("dora"), "dora")
		only := a.identities(dora).GetIdentities()[0].GetId()
		_, err := a.unlink(dora, only, "")
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_LAST_LOGIN_METHOD)
		dora.lives(t)
		_, err = a.link(dora, "facebook", map[string]any{"id": "dora"})
		require.NoError(t, err)
		_, err = a.unlink(dora, only, "")
		require.NoError(t, err)
		_, err = a.unlink(dora, a.identities(dora).GetIdentities()[0].GetId(), "")
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_LAST_LOGIN_METHOD)
	})
	t.Run("TwoAtOnceLeaveOne", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		emma := a.settle("house", person1("emma"), "emma")
		_, err := a.link(emma, "facebook", map[string]any{"id": "emma"})
		require.NoError(t, err)
		outcomes := make(chan error, 2)
		for _, i := range a.identities(emma).GetIdentities() {
			go func() {
				_, err := a.unlink(emma, i.GetId(), "")
				outcomes <- err
			}()
		}
		failed := 0
		for range 2 {
			if err := <-outcomes; err != nil {
				requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_LAST_LOGIN_METHOD)
				failed++
			}
		}
		require.Equal(t, 1, failed)
		require.Len(t, a.identities(emma).GetIdentities(), 1)
	})
	t.Run("APasswordCanBeSet", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		finn := a.settle("house", person1("finn"), "finn")
		_, err := a.auth.LogIn(t.Context(), &authv1.LogInRequest{Login: "finn", Password: password})
		wrongPassword(t, err)
		_, err = finn.account.RequestPasswordReset(t.Context(), &authv1.RequestPasswordResetRequest{Login: "finn"})
		require.NoError(t, err)
		_, err = finn.account.ResetPassword(t.Context(), &authv1.ResetPasswordRequest{
			Login: "finn", Code: mailedCode(t, a.Harness, "finn@example.org"), NewPassword: password,
		})
		require.NoError(t, err)
		back := again(t, a.Harness, a.auth, "finn", password)
		list := a.identities(back)
		require.True(t, list.GetPassword())
		_, err = a.unlink(back, list.GetIdentities()[0].GetId(), password)
		require.NoError(t, err)
	})
}

// Without a password it is the log-in that proves who sits there, for ten minutes.
func TestIdentitiesWithoutAPassword(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	anna := a.settle("house", person1("anna"), "anna")
	a.Clock.Advance(11 * time.Minute)
	tokens, err := refresh(t.Context(), a.auth, anna.tokens.GetRefreshToken())
	require.NoError(t, err)
	anna = logged(a.Harness, anna.id, tokens)
	_, challenge := newVerifier()
	_, err = a.as(anna).StartIdentityLink(t.Context(), &authv1.StartIdentityLinkRequest{
		Provider: "facebook", RedirectUri: idpReturn, ClientChallenge: challenge,
	})
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
	_, err = a.unlink(anna, identityID(), "")
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
	res, err := a.visit("house", person1("anna"))
	require.NoError(t, err)
	_, err = a.link(logged(a.Harness, anna.id, res.GetLogIn().GetTokens()), "facebook", map[string]any{"id": "anna"})
	require.NoError(t, err)
}
