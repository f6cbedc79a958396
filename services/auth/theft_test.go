package auth_test

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

func sessionRevoked(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED)
}

// Somebody else's token makes nobody an admin in a record, and hides nothing there.
func TestSomebodyElsesTokenIsNobodys(t *testing.T) {
	t.Parallel()
	h, client := withMail(t, "PARLEY_AUTH_ACTION_LIMIT=3")
	root := newAdmin(t, h, client, "root")
	anna, mallory := newcomer(t, h, client, "anna"), newcomer(t, h, client, "mallory")
	_, err := logIn(from(t, "203.0.113.66"), mallory.auth, "anna", "not-the-password")
	wrongPassword(t, err)
	_, err = mallory.account.ResetPassword(from(t, "203.0.113.66"), &authv1.ResetPasswordRequest{Login: "anna", Code: "12345678", NewPassword: nextPassword})
	invalidCode(t, err)
	for range 3 {
		_, err = logIn(from(t, "203.0.113.66"), mallory.auth, "anna", password)
		require.NoError(t, err)
	}
	_, err = logIn(from(t, "203.0.113.66"), mallory.auth, "anna", password)
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)

	shown := []*authv1.AuditEvent{
		anna.recorded(t, "session.started", "CREDENTIALS_INVALID"), anna.recorded(t, "session.started", ""), anna.recorded(t, "password.reset", "CODE_INVALID"),
	}
	for _, ev := range shown {
		require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_ANONYMOUS, ev.GetActor(), ev)
		require.Equal(t, "203.0.113.66", ev.GetAddress())
		require.NotEqual(t, mallory.tokens.GetSessionId(), ev.GetSessionId())
		require.Empty(t, ev.GetActorId())
	}
	whose := func() string {
		res, err := root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{UserId: anna.id})
		require.NoError(t, err)
		for _, ev := range res.GetEvents() {
			if ev.GetAction() == "password.reset" {
				require.Equal(t, "203.0.113.66", ev.GetAddress())
				return ev.GetActorId()
			}
		}
		t.Fatal("the refusal is not in the record")
		return ""
	}
	require.Equal(t, mallory.id, whose(), "admins see whose token it was")
	h.Deliver("user", "auth", event.New("user.deleted", mallory.id, 2, &userv1.UserDeleted{UserId: mallory.id}))
	require.Empty(t, whose(), "until that person is forgotten, who takes no traces along")
}

// A session that has ended changes nothing, though its token is still believed: here the event has not arrived.
func TestEndedSessionsChangeNothing(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna := newcomer(t, h, client, "anna")
	verify := mailedCode(t, h, "anna@example.org")
	enrolled, err := anna.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{Password: password})
	require.NoError(t, err)
	_, err = anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: "mallory@example.net"})
	require.NoError(t, err)
	change := mailedCode(t, h, "mallory@example.net")
	_, err = h.DB("auth").Exec(t.Context(), "UPDATE session SET revoked_at = $1 WHERE id = $2", h.Clock.Now(), anna.tokens.GetSessionId())
	require.NoError(t, err)

	_, err = anna.account.ConfirmEmailChange(t.Context(), &authv1.ConfirmEmailChangeRequest{Code: change})
	sessionRevoked(t, err)
	_, err = changePassword(t, anna, password, nextPassword)
	sessionRevoked(t, err)
	sessionRevoked(t, verifyEmail(t, anna, verify))
	_, err = anna.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{Password: password})
	sessionRevoked(t, err)
	_, err = anna.factor.ConfirmSecondFactor(t.Context(), &authv1.ConfirmSecondFactorRequest{Code: app{enrolled.GetSecret(), h}.code(t)})
	sessionRevoked(t, err)
	_, err = anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: "mallory@example.net"})
	sessionRevoked(t, err)
	again(t, h, client, "anna@example.org", password)
}

// Who logs out everywhere ends what the sessions had begun, not what belongs to the account.
func TestLogOutEverywhereDropsCodes(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna := newcomer(t, h, client, "anna")
	verify := mailedCode(t, h, "anna@example.org")
	_, err := anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: "mallory@example.net"})
	require.NoError(t, err)
	change := mailedCode(t, h, "mallory@example.net")
	_, err = anna.sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{KeepCurrent: true})
	require.NoError(t, err)
	_, err = anna.account.ConfirmEmailChange(t.Context(), &authv1.ConfirmEmailChangeRequest{Code: change})
	invalidCode(t, err)
	require.NoError(t, verifyEmail(t, anna, verify))
}

func TestLogInsRaceASuspension(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_LOGIN_LIMIT=0", "PARLEY_AUTH_SESSIONS_PER_ACCOUNT=1000")
	root, anna := newAdmin(t, h, client, "root"), newcomer(t, h, client, "anna")
	var group sync.WaitGroup
	for range 24 {
		group.Go(func() { _, _ = logIn(t.Context(), client, "anna", password) })
	}
	group.Go(func() {
		if _, err := root.admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: anna.id, Note: "spam"}); err != nil {
			t.Errorf("suspend: %v", err)
		}
	})
	group.Wait()
	var live int
	require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM session WHERE account_id = $1 AND revoked_at IS NULL", anna.id).Scan(&live))
	require.Zero(t, live, "no session of a suspended account lives")
}

// A log-in that read the old role before it was lost has its session ended; one that begins after has the new role.
func TestLogInsRaceALossOfRole(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_LOGIN_LIMIT=0", "PARLEY_AUTH_SESSIONS_PER_ACCOUNT=1000")
	root := newAdmin(t, h, client, "root")
	anna := newAdmin(t, h, client, "anna")
	var mu sync.Mutex
	var all []*authv1.Tokens
	var group sync.WaitGroup
	for range 24 {
		group.Go(func() {
			if res, err := logIn(t.Context(), client, "anna", password); err == nil {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, res.GetTokens())
			}
		})
	}
	group.Go(func() {
		if _, err := root.admin.SetRole(t.Context(), &authv1.SetRoleRequest{UserId: anna.id, Role: authv1.Role_ROLE_USER}); err != nil {
			t.Errorf("take the role: %v", err)
		}
	})
	group.Wait()
	require.NotEmpty(t, all)
	for _, tokens := range all {
		claims, err := verifier(h).Verify(t.Context(), tokens.GetAccessToken())
		require.NoError(t, err)
		var live bool
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT revoked_at IS NULL FROM session WHERE id = $1", tokens.GetSessionId()).Scan(&live))
		require.Equal(t, claims.Role.String() == "user", live, "sessions with the lost role end, the others live")
	}
}

// The last admin may leave like anybody; the operator is told.
func TestTheLastAdminLeaves(t *testing.T) {
	t.Parallel()
	var log lockedLog
	h, client := startWith(t, servicetest.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	root, second := newAdmin(t, h, client, "root"), newAdmin(t, h, client, "second")
	leave := func(p *someone) {
		h.Deliver("user", "auth", event.New("user.deleted", p.id, 2, &userv1.UserDeleted{UserId: p.id}))
	}
	leave(root)
	require.NotContains(t, log.String(), "last admin")
	leave(second)
	require.Contains(t, log.String(), "level=ERROR msg=\"the last admin has left")
}

// lockedLog is a log that is read while others write to it.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Pages of the record need one connection each: many readers at once do not wait for each other's.
func TestManyAdminsReadAtOnce(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	root := newAdmin(t, h, client, "root")
	began := time.Now()
	errs := make([]error, 64)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() {
			_, errs[i] = root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{})
		})
	}
	group.Wait()
	for _, err := range errs {
		require.NoError(t, err, "after %s", time.Since(began))
	}
}
