package auth_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func (p *someone) list(t *testing.T) []*authv1.Session {
	t.Helper()
	res, err := p.sessions.ListSessions(t.Context(), &authv1.ListSessionsRequest{})
	require.NoError(t, err)
	return res.GetSessions()
}

func TestSessions(t *testing.T) {
	t.Parallel()
	h, client := start(t)

	t.Run("ListShowsDeviceAddressAndWhichOneThisIs", func(t *testing.T) {
		t.Parallel()
		anna := newcomer(t, h, client, "anna")
		ctx, call := connect.NewClientContext(t.Context())
		call.RequestHeader().Set("X-Forwarded-For", "203.0.113.7")
		res, err := client.LogIn(ctx, &authv1.LogInRequest{Login: "anna", Password: password, DeviceName: "phone"})
		require.NoError(t, err)
		phone := logged(h, anna.id, res.GetTokens())

		all := map[string]*authv1.Session{}
		for _, s := range phone.list(t) {
			all[s.GetId()] = s
		}
		require.Len(t, all, 2)
		mine := all[phone.tokens.GetSessionId()]
		require.True(t, mine.GetCurrent())
		require.Equal(t, "phone", mine.GetDeviceName())
		require.Equal(t, "203.0.113.7", mine.GetAddress())
		require.Contains(t, mine.GetUserAgent(), "connect-go/")
		require.True(t, h.Clock.Now().Equal(mine.GetLastUsedAt().AsTime()))
		require.False(t, all[anna.tokens.GetSessionId()].GetCurrent())
	})
	t.Run("Rename", func(t *testing.T) {
		t.Parallel()
		berta := newcomer(t, h, client, "berta")
		_, err := berta.sessions.RenameSession(t.Context(), &authv1.RenameSessionRequest{SessionId: berta.tokens.GetSessionId(), DeviceName: "kitchen"})
		require.NoError(t, err)
		require.Equal(t, "kitchen", berta.list(t)[0].GetDeviceName())
		berta.recorded(t, "session.renamed", "")
	})
	t.Run("RevokeEndsOne", func(t *testing.T) {
		t.Parallel()
		cleo := newcomer(t, h, client, "cleo")
		other := again(t, h, client, "cleo", password)
		revoke := func() {
			_, err := cleo.sessions.RevokeSession(t.Context(), &authv1.RevokeSessionRequest{SessionId: other.tokens.GetSessionId()})
			require.NoError(t, err)
		}
		revoke()
		revoke()
		other.ended(t)
		cleo.lives(t)
		require.Len(t, cleo.list(t), 1)
		told := 0
		for _, ev := range h.Events("auth", "session.revoked") {
			if ev.GetKey() == other.tokens.GetSessionId() {
				told++
			}
		}
		require.Equal(t, 1, told)
	})
	t.Run("NobodyTouchesAnotherPersonsSession", func(t *testing.T) {
		t.Parallel()
		doro, emil := newcomer(t, h, client, "doro"), newcomer(t, h, client, "emil")
		for _, id := range []string{emil.tokens.GetSessionId(), uuid.NewString()} {
			_, err := doro.sessions.RevokeSession(t.Context(), &authv1.RevokeSessionRequest{SessionId: id})
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_SESSION_NOT_FOUND)
			_, err = doro.sessions.RenameSession(t.Context(), &authv1.RenameSessionRequest{SessionId: id, DeviceName: "mine"})
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_SESSION_NOT_FOUND)
		}
		emil.lives(t)
		require.NotEqual(t, "mine", emil.list(t)[0].GetDeviceName())
	})
	t.Run("LogOutEverywhere", func(t *testing.T) {
		t.Parallel()
		fritz := newcomer(t, h, client, "fritz")
		second, third := again(t, h, client, "fritz", password), again(t, h, client, "fritz", password)
		res, err := fritz.sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{KeepCurrent: true})
		require.NoError(t, err)
		require.EqualValues(t, 2, res.GetRevoked())
		second.ended(t)
		third.ended(t)
		fritz.lives(t)
		fritz.recorded(t, "session.all_ended", "")
		res, err = fritz.sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{})
		require.NoError(t, err)
		require.EqualValues(t, 1, res.GetRevoked())
		fritz.ended(t)
	})
}

func TestSessionPages(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_SESSIONS_PER_ACCOUNT=4", "PARLEY_AUTH_LOGIN_LIMIT=0")
	anna := newcomer(t, h, client, "anna")
	var last *someone
	for range 3 {
		h.Clock.Advance(time.Second)
		last = again(t, h, client, "anna", password)
	}
	var seen []string
	token := ""
	for {
		res, err := anna.sessions.ListSessions(t.Context(), &authv1.ListSessionsRequest{PageSize: 3, PageToken: token})
		require.NoError(t, err)
		for _, s := range res.GetSessions() {
			seen = append(seen, s.GetId())
		}
		if token = res.GetNextPageToken(); token == "" {
			break
		}
	}
	require.Len(t, seen, 4)
	require.Equal(t, last.tokens.GetSessionId(), seen[0], "used last")
	require.Equal(t, anna.tokens.GetSessionId(), seen[3])

	// One too many: the one used least recently ends.
	h.Clock.Advance(time.Second)
	again(t, h, client, "anna", password)
	anna.ended(t)
	last.lives(t)
	require.Len(t, last.list(t), 4)
	berta := newcomer(t, h, client, "berta")
	res, err := last.sessions.ListSessions(t.Context(), &authv1.ListSessionsRequest{PageSize: 1})
	require.NoError(t, err)
	_, err = berta.sessions.ListSessions(t.Context(), &authv1.ListSessionsRequest{PageToken: res.GetNextPageToken()})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PAGE_TOKEN_INVALID)
}

// What one session does is limited. It stops neither its log-out nor anybody else, least of all what ends a theft.
func TestActionsAreLimitedBySession(t *testing.T) {
	t.Parallel()
	h, client := withMail(t, "PARLEY_AUTH_ACTION_LIMIT=5")
	stolen := newcomer(t, h, client, "anna")
	mailedCode(t, h, "anna@example.org")
	rename := func(p *someone) error {
		_, err := p.sessions.RenameSession(t.Context(), &authv1.RenameSessionRequest{SessionId: p.tokens.GetSessionId(), DeviceName: "phone"})
		return err
	}
	limitedAfterFive(t, fine, func() error { return rename(stolen) })
	owner := again(t, h, client, "anna", password)
	require.NoError(t, rename(owner))
	_, err := stolen.account.RequestPasswordReset(t.Context(), &authv1.RequestPasswordResetRequest{Login: "anna"})
	require.NoError(t, err)
	reset := &authv1.ResetPasswordRequest{Login: "anna", Code: mailedCode(t, h, "anna@example.org"), NewPassword: nextPassword}
	_, err = stolen.account.ResetPassword(t.Context(), reset)
	require.NoError(t, err)
	stolen.ended(t)

	busy := again(t, h, client, "anna", nextPassword)
	limitedAfterFive(t, fine, func() error { return rename(busy) })
	_, err = changePassword(t, busy, nextPassword, password)
	require.NoError(t, err, "what ends a theft is not limited")
	_, err = busy.sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{})
	require.NoError(t, err)
	busy.ended(t)
}

// Somebody who has the password and not the second factor keeps its owner from nothing.
func TestLogInsThatSucceedAreLimitedByAddress(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_ACTION_LIMIT=5")
	enrol(t, h, newcomer(t, h, client, "anna"))
	asked := func(address string) error {
		_, err := logIn(from(t, address), client, "anna", password)
		return err
	}
	needsFactor := func(t *testing.T, err error) {
		t.Helper()
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_REQUIRED)
	}
	limitedAfterFive(t, needsFactor, func() error { return asked("203.0.113.66") })
	needsFactor(t, asked("198.51.100.1"))
}

func TestSessionsBeyondTheLimitAreInTheRecord(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_SESSIONS_PER_ACCOUNT=1")
	first := newcomer(t, h, client, "anna")
	h.Clock.Advance(time.Second)
	second := again(t, h, client, "anna", password)
	dropped := second.recorded(t, "session.ended", "")
	require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_SYSTEM, dropped.GetActor())
	require.Equal(t, first.tokens.GetSessionId(), dropped.GetSessionId())
	require.Equal(t, "too many sessions", dropped.GetDetails()["by"])
}

func TestRefreshIsLimited(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_REFRESH_LIMIT=5")
	anna := newcomer(t, h, client, "anna")
	token := anna.tokens.GetRefreshToken()
	again := func() error {
		tokens, err := refresh(t.Context(), client, token)
		if err == nil {
			token = tokens.GetRefreshToken()
		}
		return err
	}
	limitedAfterFive(t, fine, again)
	_, err := refresh(t.Context(), client, newcomer(t, h, client, "berta").tokens.GetRefreshToken())
	require.NoError(t, err, "another session goes on")
	h.Clock.Advance(attemptWindow)
	require.NoError(t, again())

	// What we never issued counts by where it comes from.
	invented := anna.tokens.GetRefreshToken()
	invented = invented[:40] + flip(invented[40:41]) + invented[41:]
	invalid := func(t *testing.T, err error) {
		t.Helper()
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)
	}
	limitedAfterFive(t, invalid, func() error {
		_, err := refresh(from(t, "203.0.113.5"), client, invented)
		return err
	})
}
