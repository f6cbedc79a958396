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

func TestActionsAreLimitedAndLoggingOutIsNot(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_ACTION_LIMIT=5")
	anna := newcomer(t, h, client, "anna")
	limitedAfterFive(t, fine, func() error {
		_, err := anna.sessions.RenameSession(t.Context(), &authv1.RenameSessionRequest{SessionId: anna.tokens.GetSessionId(), DeviceName: "phone"})
		return err
	})
	_, err := logIn(t.Context(), client, "anna", password)
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	_, err = anna.sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{})
	require.NoError(t, err)
	anna.ended(t)
}
