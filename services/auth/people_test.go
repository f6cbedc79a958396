package auth_test

import (
	"regexp"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth"
)

// someone is a person with a session, and all that they may call.
type someone struct {
	id       string
	tokens   *authv1.Tokens
	auth     authv1connect.AuthServiceClient
	sessions authv1connect.SessionServiceClient
	account  authv1connect.AccountServiceClient
	factor   authv1connect.SecondFactorServiceClient
	admin    authv1connect.AdminServiceClient
}

// logged is somebody who has just logged in or registered.
func logged(h *servicetest.Harness, id string, tokens *authv1.Tokens) *someone {
	httpClient, url, option := h.Dial("auth", h.Token(tokens.GetAccessToken()))
	return &someone{
		id: id, tokens: tokens,
		auth:     authv1connect.NewAuthServiceClient(httpClient, url, option),
		sessions: authv1connect.NewSessionServiceClient(httpClient, url, option),
		account:  authv1connect.NewAccountServiceClient(httpClient, url, option),
		factor:   authv1connect.NewSecondFactorServiceClient(httpClient, url, option),
		admin:    authv1connect.NewAdminServiceClient(httpClient, url, option),
	}
}

// newcomer registers somebody, who is at name@example.org.
func newcomer(t *testing.T, h *servicetest.Harness, client authv1connect.AuthServiceClient, name string) *someone {
	t.Helper()
	res := register(t, client, name)
	return logged(h, res.GetUserId(), res.GetTokens())
}

// again logs in once more.
func again(t *testing.T, h *servicetest.Harness, client authv1connect.AuthServiceClient, login, password string) *someone {
	t.Helper()
	res, err := logIn(t.Context(), client, login, password)
	require.NoError(t, err)
	return logged(h, res.GetUserId(), res.GetTokens())
}

// ended waits until a session is over everywhere: no refresh, and no call with a token that is about.
func (p *someone) ended(t *testing.T) {
	t.Helper()
	_, err := refresh(t.Context(), p.auth, p.tokens.GetRefreshToken())
	require.Error(t, err)
	require.Eventually(t, func() bool {
		_, err := p.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
		return rpc.ReasonOf(err) == errorv1.Reason_REASON_SESSION_REVOKED
	}, 10*time.Second, 5*time.Millisecond, "the end of the session is known")
}

// lives says that a session goes on.
func (p *someone) lives(t *testing.T) {
	t.Helper()
	_, err := p.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
	require.NoError(t, err)
}

// withMail starts auth with a mail server.
func withMail(t *testing.T, settings ...string) (*servicetest.Harness, authv1connect.AuthServiceClient) {
	t.Helper()
	return startWith(t, servicetest.Options{Mail: "auth", Settings: settings})
}

var codePattern = regexp.MustCompile(`\b[0-9]{8}\b`)

// mailedCode reads the code in the next mail to an address.
func mailedCode(t *testing.T, h *servicetest.Harness, to string) string {
	t.Helper()
	m := h.Mail.Next(to)
	code := codePattern.FindString(m.Text)
	require.NotEmpty(t, code, m.Text)
	require.Contains(t, m.HTML, code)
	return code
}

// wrongCode is another one.
func wrongCode(code string) string {
	if code[0] == '9' {
		return "0" + code[1:]
	}
	return string(code[0]+1) + code[1:]
}

func invalidCode(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_CODE_INVALID)
}

func wrongPassword(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
}

// operator is somebody with the database.
func operator(t *testing.T, h *servicetest.Harness) *auth.Operator {
	t.Helper()
	var clk clock.Clock = h.Clock
	return auth.NewOperator(h.DB("auth"), clk, testkit.Logger(t))
}

// newAdmin makes somebody an admin, and logs in as one.
func newAdmin(t *testing.T, h *servicetest.Harness, client authv1connect.AuthServiceClient, name string) *someone {
	t.Helper()
	register(t, client, name)
	done, err := operator(t, h).Grant(t.Context(), name, identity.RoleAdmin, "test")
	require.NoError(t, err)
	require.NotEqual(t, uuid.Nil, done.UserID)
	return again(t, h, client, name, password)
}

// record returns the actions that an account's record shows to its owner, the newest first.
func (p *someone) record(t *testing.T) []*authv1.AuditEvent {
	t.Helper()
	res, err := p.account.ListOwnAuditEvents(t.Context(), &authv1.ListOwnAuditEventsRequest{PageSize: 200})
	require.NoError(t, err)
	return res.GetEvents()
}

// recorded requires an entry of that action, outcome by its reason.
func (p *someone) recorded(t *testing.T, action, reason string) *authv1.AuditEvent {
	t.Helper()
	for _, ev := range p.record(t) {
		if ev.GetAction() == action && ev.GetReason() == reason {
			return ev
		}
	}
	t.Fatalf("no %s (%s) in the record: %v", action, reason, p.record(t))
	return nil
}

// limitedAfterFive guesses until the limit stands in the way: not before the fifth failure, and then soon. On a machine
// that is so busy that Redis does not answer in time, a failure may be counted by the process alone.
func limitedAfterFive(t *testing.T, wrong func(*testing.T, error), guess func() error) {
	t.Helper()
	for range 5 {
		wrong(t, guess())
	}
	for range 5 {
		err := guess()
		if rpc.ReasonOf(err) == errorv1.Reason_REASON_RATE_LIMITED {
			requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
			require.LessOrEqual(t, rpc.InfoOf(err).GetRetryAfter().AsDuration(), attemptWindow)
			return
		}
		wrong(t, err)
	}
	t.Fatal("guesses are not limited")
}

// fine is for what is no failure, and limited by number.
func fine(t *testing.T, err error) {
	t.Helper()
	require.NoError(t, err)
}
