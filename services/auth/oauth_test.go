package auth_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// abroad is a deployment with providers, and a client that is nobody yet.
type abroad struct {
	*servicetest.Harness

	t     *testing.T
	idp   *idp
	auth  authv1connect.AuthServiceClient
	oauth authv1connect.OAuthServiceClient
}

func startAbroad(t *testing.T, settings ...string) *abroad {
	t.Helper()
	p := newIDP(t)
	h, client := withMail(t, append(p.settings(), settings...)...)
	p.change(func() { p.now = h.Clock.Now })
	return &abroad{
		Harness: h, t: t, idp: p, auth: client,
		oauth: authv1connect.NewOAuthServiceClient(h.Dial("auth", h.Anonymous())),
	}
}

// in is the same for a test within the test.
func (a *abroad) in(t *testing.T) *abroad {
	t.Helper()
	within := *a
	within.t = t
	return &within
}

// as is the API of somebody who is logged in.
func (a *abroad) as(p *someone) authv1connect.OAuthServiceClient {
	return authv1connect.NewOAuthServiceClient(a.Dial("auth", a.Token(p.tokens.GetAccessToken())))
}

// flow is what a client keeps between the two calls.
type flow struct {
	verifier, url, state string
}

func newVerifier() (verifier, challenge string) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	verifier = base64.RawURLEncoding.EncodeToString(raw[:])
	sum := sha256.Sum256([]byte(verifier))
	return verifier, base64.RawURLEncoding.EncodeToString(sum[:])
}

func (a *abroad) begin(provider string) flow {
	a.t.Helper()
	verifier, challenge := newVerifier()
	asked := a.Clock.Now()
	res, err := a.oauth.StartOAuth(a.t.Context(), &authv1.StartOAuthRequest{Provider: provider, RedirectUri: idpReturn, ClientChallenge: challenge})
	require.NoError(a.t, err)
	// A test beside this one may move the clock meanwhile.
	require.WithinRange(a.t, res.GetExpiresAt().AsTime(), asked.Add(10*time.Minute), a.Clock.Now().Add(10*time.Minute))
	return flow{verifier, res.GetAuthorizationUrl(), res.GetState()}
}

func (a *abroad) finish(f flow, code string) (*authv1.FinishOAuthResponse, error) {
	return a.oauth.FinishOAuth(a.t.Context(), &authv1.FinishOAuthRequest{
		State: f.state, Code: code, ClientVerifier: f.verifier, DeviceName: "phone",
	})
}

// visit is a whole flow.
func (a *abroad) visit(provider string, who map[string]any) (*authv1.FinishOAuthResponse, error) {
	a.t.Helper()
	f := a.begin(provider)
	code, state := a.idp.consent(f.url, who)
	require.Equal(a.t, f.state, state)
	return a.finish(f, code)
}

func person1(name string) map[string]any {
	return map[string]any{"sub": "sub-" + name, "email": name + "@example.org", "email_verified": true, "name": "The " + name}
}

// settle makes an account of somebody who is new.
func (a *abroad) settle(provider string, who map[string]any, username string) *someone {
	a.t.Helper()
	res, err := a.visit(provider, who)
	require.NoError(a.t, err)
	registered, err := a.oauth.RegisterWithOAuth(a.t.Context(), &authv1.RegisterWithOAuthRequest{
		Ticket: res.GetRegistration().GetTicket(), Username: username,
	})
	require.NoError(a.t, err)
	return logged(a.Harness, registered.GetUserId(), registered.GetTokens())
}

// link links somebody's identity.
func (a *abroad) link(p *someone, provider string, who map[string]any) (*authv1.LinkIdentityResponse, error) {
	a.t.Helper()
	f := a.beginLink(p, provider)
	code, _ := a.idp.consent(f.url, who)
	return a.as(p).LinkIdentity(a.t.Context(), &authv1.LinkIdentityRequest{State: f.state, Code: code, ClientVerifier: f.verifier})
}

func (a *abroad) beginLink(p *someone, provider string) flow {
	a.t.Helper()
	verifier, challenge := newVerifier()
	res, err := a.as(p).StartIdentityLink(a.t.Context(), &authv1.StartIdentityLinkRequest{
		Provider: provider, RedirectUri: idpReturn, ClientChallenge: challenge, Password: password,
	})
	require.NoError(a.t, err)
	return flow{verifier, res.GetAuthorizationUrl(), res.GetState()}
}

func stateInvalid(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_STATE_INVALID)
}

func refusedAbroad(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_REFUSED)
}

func providerAway(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_OAUTH_PROVIDER_UNAVAILABLE)
}

func TestOAuthRegistersAndLogsIn(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	for provider, who := range map[string]map[string]any{
		"house":    person1("anna"),
		"facebook": {"id": "12345", "email": "ben@example.org", "name": "Ben"},
	} {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			a := a.in(t)
			name := strings.TrimSuffix(who["email"].(string), "@example.org")
			res, err := a.visit(provider, who)
			require.NoError(t, err)
			offer := res.GetRegistration()
			require.Equal(t, who["email"], offer.GetEmail())
			require.Equal(t, who["name"], offer.GetName())
			require.Equal(t, provider == "house", offer.GetEmailVerified(), "Facebook does not say so")

			registered, err := a.oauth.RegisterWithOAuth(t.Context(), &authv1.RegisterWithOAuthRequest{Ticket: offer.GetTicket(), Username: name})
			require.NoError(t, err)
			p := logged(a.Harness, registered.GetUserId(), registered.GetTokens())
			own, err := p.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
			require.NoError(t, err)
			require.Equal(t, who["email"], own.GetEmail())
			require.Equal(t, provider == "house", own.GetEmailVerifiedAt() != nil)
			p.recorded(t, "account.registered", "")
			if provider == "facebook" {
				require.Equal(t, "Confirm your address for Parley", a.Mail.Next(own.GetEmail()).Subject)
			}

			back, err := a.visit(provider, who)
			require.NoError(t, err)
			require.Equal(t, p.id, back.GetLogIn().GetUserId())
			again := logged(a.Harness, p.id, back.GetLogIn().GetTokens())
			again.lives(t)
			require.Equal(t, provider, again.recorded(t, "session.started", "").GetDetails()["by"])
			sessions := again.list(t)
			require.Len(t, sessions, 2)

			list, err := a.as(again).ListIdentities(t.Context(), &authv1.ListIdentitiesRequest{})
			require.NoError(t, err)
			require.False(t, list.GetPassword())
			require.Len(t, list.GetIdentities(), 1)
			require.Equal(t, provider, list.GetIdentities()[0].GetProvider())

			_, err = logIn(t.Context(), a.auth, name, "")
			require.Error(t, err)
			_, err = logIn(t.Context(), a.auth, name, password)
			wrongPassword(t, err)
		})
	}
}

func TestOAuthProviders(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	res, err := a.oauth.ListOAuthProviders(t.Context(), &authv1.ListOAuthProvidersRequest{})
	require.NoError(t, err)
	names := map[string]string{}
	for _, p := range res.GetProviders() {
		names[p.GetName()] = p.GetDisplayName()
	}
	require.Equal(t, map[string]string{"facebook": "Facebook", "house": "The House"}, names)

	_, challenge := newVerifier()
	start := func(provider, back, challenge string) error {
		_, err := a.oauth.StartOAuth(t.Context(), &authv1.StartOAuthRequest{Provider: provider, RedirectUri: back, ClientChallenge: challenge})
		return err
	}
	requireReason(t, start("google", idpReturn, challenge), connect.CodeNotFound, errorv1.Reason_REASON_OAUTH_PROVIDER_UNKNOWN)
	for _, back := range []string{idpForeign, idpReturn + "/", idpReturn + "?a=b", "HTTPS://chat.example.org/oauth", "com.example.chat:/other"} {
		requireReason(t, start("house", back, challenge), connect.CodeInvalidArgument, errorv1.Reason_REASON_OAUTH_REDIRECT_NOT_ALLOWED)
	}
	require.NoError(t, start("house", "com.example.chat:/oauth", challenge))
	requireReason(t, start("house", idpReturn, "short"), connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
}

// What came from another flow, another client or a second time is of no use.
func TestOAuthFlowsAreBound(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	settled := a.settle("house", person1("anna"), "anna")

	t.Run("UnknownState", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		_, err := a.finish(flow{verifier: strings.Repeat("v", 43), state: "nobody's"}, "code")
		stateInvalid(t, err)
	})
	t.Run("OneTry", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		f := a.begin("house")
		code, _ := a.idp.consent(f.url, person1("anna"))
		_, err := a.finish(f, code)
		require.NoError(t, err)
		_, err = a.finish(f, code)
		stateInvalid(t, err)
	})
	t.Run("CodeThatWasUsed", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		first, second := a.begin("house"), a.begin("house")
		code, _ := a.idp.consent(first.url, person1("anna"))
		_, err := a.finish(first, code)
		require.NoError(t, err)
		_, err = a.finish(second, code)
		refusedAbroad(t, err)
	})
	t.Run("AnotherFlowsCode", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		// A code that somebody slips in fails at the provider, by PKCE.
		theirs, mine := a.begin("house"), a.begin("house")
		code, _ := a.idp.consent(theirs.url, person1("mallory"))
		_, err := a.finish(mine, code)
		refusedAbroad(t, err)
	})
	t.Run("AnotherClientsVerifier", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		f := a.begin("house")
		code, _ := a.idp.consent(f.url, person1("anna"))
		right := f.verifier
		f.verifier = strings.Repeat("v", 43)
		_, err := a.finish(f, code)
		stateInvalid(t, err)
		f.verifier = right
		_, err = a.finish(f, code)
		stateInvalid(t, err)
	})
	t.Run("AnotherProvidersRedirect", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		f := a.begin("house")
		code, _ := a.idp.consent(f.url, person1("anna"))
		_, err := a.oauth.FinishOAuth(t.Context(), &authv1.FinishOAuthRequest{
			State: f.state, Code: code, ClientVerifier: f.verifier, Issuer: "https://evil.example",
		})
		refusedAbroad(t, err)
	})
	t.Run("LogInDoesNotLink", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		f := a.begin("facebook")
		code, _ := a.idp.consent(f.url, map[string]any{"id": "1"})
		_, err := a.as(settled).LinkIdentity(t.Context(), &authv1.LinkIdentityRequest{State: f.state, Code: code, ClientVerifier: f.verifier})
		stateInvalid(t, err)
	})
	t.Run("LinkDoesNotLogIn", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		f := a.beginLink(settled, "facebook")
		code, _ := a.idp.consent(f.url, map[string]any{"id": "1"})
		_, err := a.finish(f, code)
		stateInvalid(t, err)
	})
	t.Run("LinkOfAnotherSession", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		res, err := a.visit("house", person1("anna"))
		require.NoError(t, err)
		other := logged(a.Harness, settled.id, res.GetLogIn().GetTokens())
		f := a.beginLink(settled, "facebook")
		code, _ := a.idp.consent(f.url, map[string]any{"id": "1"})
		_, err = a.as(other).LinkIdentity(t.Context(), &authv1.LinkIdentityRequest{State: f.state, Code: code, ClientVerifier: f.verifier})
		stateInvalid(t, err)
	})
}

func TestOAuthFlowsExpire(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	f := a.begin("house")
	code, _ := a.idp.consent(f.url, person1("anna"))
	res, err := a.visit("house", person1("ben"))
	require.NoError(t, err)
	a.Clock.Advance(10 * time.Minute)
	_, err = a.finish(f, code)
	stateInvalid(t, err)
	_, err = a.oauth.RegisterWithOAuth(t.Context(), &authv1.RegisterWithOAuthRequest{Ticket: res.GetRegistration().GetTicket(), Username: "ben"})
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_TICKET_INVALID)
	// Nothing of it stays.
	a.begin("house")
	a.Clock.Advance(11 * time.Minute)
	require.Eventually(t, func() bool {
		var left int
		err := a.DB("auth").QueryRow(t.Context(), "SELECT (SELECT count(*) FROM oauth_flow) + (SELECT count(*) FROM oauth_ticket)").Scan(&left)
		return err == nil && left == 0
	}, 20*time.Second, 10*time.Millisecond, "the job deletes what has expired")
}

func TestOAuthDoesNotLinkByAddress(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	newcomer(t, a.Harness, a.auth, "anna")
	_, err := a.visit("house", person1("anna"))
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_OAUTH_LINK_REQUIRED)

	// Whoever merely claims the address learns of no account, and gets none with it.
	claimed := person1("anna")
	claimed["email_verified"] = "false"
	res, err := a.visit("house", claimed)
	require.NoError(t, err)
	ticket := res.GetRegistration().GetTicket()
	register := func(username, email string) error {
		_, err := a.oauth.RegisterWithOAuth(t.Context(), &authv1.RegisterWithOAuthRequest{Ticket: ticket, Username: username, Email: email})
		return err
	}
	requireReason(t, register("ben", ""), connect.CodeAlreadyExists, errorv1.Reason_REASON_EMAIL_TAKEN)
	requireReason(t, register("anna", "ben@example.org"), connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
	require.NoError(t, register("ben", "ben@example.org"), "the ticket is still good")
	requireReason(t, register("cleo", "cleo@example.org"), connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_TICKET_INVALID)
}

func TestOAuthRegistrationWithAnotherAddress(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	who := person1("anna")
	delete(who, "email")
	res, err := a.visit("facebook", map[string]any{"id": "7", "name": "Anna"})
	require.NoError(t, err)
	_, err = a.oauth.RegisterWithOAuth(t.Context(), &authv1.RegisterWithOAuthRequest{Ticket: res.GetRegistration().GetTicket(), Username: "anna"})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_EMAIL_REQUIRED)

	// A provider that tells the address elsewhere, and of the right person only.
	a.idp.change(func() { a.idp.userinfo = map[string]any{"sub": "somebody else", "email": "anna@example.org"} })
	_, err = a.visit("house", who)
	refusedAbroad(t, err)
	a.idp.change(func() {
		a.idp.userinfo = map[string]any{"sub": who["sub"], "email": "anna@example.org", "email_verified": true}
	})
	res, err = a.visit("house", who)
	require.NoError(t, err)
	require.Equal(t, "anna@example.org", res.GetRegistration().GetEmail())
	// The provider vouches for its address, not for another.
	registered, err := a.oauth.RegisterWithOAuth(t.Context(), &authv1.RegisterWithOAuthRequest{
		Ticket: res.GetRegistration().GetTicket(), Username: "anna", Email: "other@example.org", DisplayName: "  Anna  ",
	})
	require.NoError(t, err)
	p := logged(a.Harness, registered.GetUserId(), registered.GetTokens())
	own, err := p.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
	require.NoError(t, err)
	require.Equal(t, "other@example.org", own.GetEmail())
	require.Nil(t, own.GetEmailVerifiedAt())
	mailedCode(t, a.Harness, "other@example.org")
}

func TestOAuthKeepsTheDoorsOfLogIn(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)

	t.Run("SecondFactor", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		anna := newcomer(t, a.Harness, a.auth, "anna")
		_, err := a.link(anna, "house", person1("anna"))
		require.NoError(t, err)
		authenticator, _ := enrol(t, a.Harness, anna)
		_, err = a.visit("house", person1("anna"))
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_REQUIRED)
		challenge := rpc.InfoOf(err).GetMetadata()["challenge"]
		factor := authv1connect.NewSecondFactorServiceClient(a.Dial("auth", a.Anonymous()))
		res, err := factor.CompleteLogIn(t.Context(), &authv1.CompleteLogInRequest{Challenge: challenge, Code: authenticator.next(t)})
		require.NoError(t, err)
		require.Equal(t, anna.id, res.GetUserId())
	})
	t.Run("Suspension", func(t *testing.T) {
		t.Parallel()
		a := a.in(t)
		ben := a.settle("house", person1("ben"), "ben")
		admin := newAdmin(t, a.Harness, a.auth, "admin")
		_, err := admin.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: ben.id, Note: "test"})
		require.NoError(t, err)
		_, err = a.visit("house", person1("ben"))
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCOUNT_SUSPENDED)
	})
}

// A provider inside our own network is not asked, whatever its name or a redirect says.
func TestOAuthStaysOutOfPrivateNetworks(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	u, err := url.Parse(p.URL)
	require.NoError(t, err)
	h, _ := start(t, "PARLEY_AUTH_OAUTH_OIDC_ISSUERS=house=https://"+u.Host, "PARLEY_AUTH_OAUTH_OIDC_CLIENT_IDS=house="+idpClient,
		"PARLEY_AUTH_OAUTH_REDIRECT_URIS="+idpReturn)
	client := authv1connect.NewOAuthServiceClient(h.Dial("auth", h.Anonymous()))
	_, challenge := newVerifier()
	_, err = client.StartOAuth(t.Context(), &authv1.StartOAuthRequest{Provider: "house", RedirectUri: idpReturn, ClientChallenge: challenge})
	providerAway(t, err)
	p.change(func() { require.Zero(t, p.calls) })
}

func TestOAuthStartsAreLimited(t *testing.T) {
	t.Parallel()
	a := startAbroad(t, "PARLEY_AUTH_OAUTH_START_LIMIT=2")
	start := func(ctx context.Context) error {
		_, challenge := newVerifier()
		_, err := a.oauth.StartOAuth(ctx, &authv1.StartOAuthRequest{Provider: "house", RedirectUri: idpReturn, ClientChallenge: challenge})
		return err
	}
	for range 2 {
		require.NoError(t, start(from(t, "203.0.113.7")))
	}
	requireReason(t, start(from(t, "203.0.113.7")), connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	require.NoError(t, start(from(t, "203.0.113.8")))
}

// One flow, finished many times at once, is one session.
func TestOAuthRacesSpendAFlowOnce(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	a.settle("house", person1("anna"), "anna")
	f := a.begin("house")
	code, _ := a.idp.consent(f.url, person1("anna"))
	const racers = 8
	outcomes := make(chan error, racers)
	for range racers {
		go func() {
			_, err := a.finish(f, code)
			outcomes <- err
		}()
	}
	won := 0
	for range racers {
		if err := <-outcomes; err == nil {
			won++
		} else {
			stateInvalid(t, err)
		}
	}
	require.Equal(t, 1, won)
}

// identityID is one that nobody has.
func identityID() string { return uuid.Must(uuid.NewV7()).String() }

func with(who map[string]any, name string, value any) map[string]any {
	changed := maps.Clone(who)
	changed[name] = value
	return changed
}
