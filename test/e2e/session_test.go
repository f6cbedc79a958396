package e2e_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// revokedWithin is the promise of LogOut for sockets and tokens.
const revokedWithin = 2 * time.Second

// socket opens a bare connection of the person.
func (p *person) socket(t *testing.T, gateway int) *client.Conn {
	t.Helper()
	conn, err := client.Dial(t.Context(), client.Config{URL: "ws://" + hostOf(p.sys, gateway) + "/v1/ws", Token: p.token})
	require.NoError(t, err, "connect")
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// requireRevoked requires that the server closes the connection as that of a
// session that has ended, in time.
func requireRevoked(t *testing.T, conn *client.Conn, within time.Duration) {
	t.Helper()
	select {
	case <-conn.Done():
	case <-time.After(within):
		require.FailNow(t, "the socket of an ended session is open", "after %s", within)
	}
	closed := &client.CloseError{}
	require.ErrorAs(t, conn.Err(), &closed)
	require.Equal(t, client.CloseUnauthentic, closed.Code)
	require.Equal(t, "SESSION_REVOKED", closed.Reason)
}

// logOutClosesSockets: after a log-out the session's sockets close on every
// gateway within two seconds and its tokens are refused; another session of the
// same person goes on.
func logOutClosesSockets(t *testing.T, sys *system.System) {
	ada := register(t, sys, 0)
	other := ada.logIn(t)
	leaving := []*client.Conn{ada.socket(t, 0), ada.socket(t, 1)}
	staying := other.socket(t, 1)

	_, err := ada.auth(0).LogOut(t.Context(), &authv1.LogOutRequest{})
	require.NoError(t, err)
	for _, conn := range leaving {
		requireRevoked(t, conn, revokedWithin)
	}
	require.Eventually(t, func() bool {
		_, err := ada.messaging(1).ListConversations(t.Context(), &messagingv1.ListConversationsRequest{})
		return rpc.ReasonOf(err) == errorv1.Reason_REASON_SESSION_REVOKED
	}, revokedWithin, poll, "the access token is refused")
	_, err = authAt(sys, 1).Refresh(t.Context(), &authv1.RefreshRequest{RefreshToken: ada.tokens.GetRefreshToken()})
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "the refresh token is dead: %v", err)

	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, staying.Ping(ctx), "the other session goes on")
}

// refresh trades a refresh token.
func refresh(t *testing.T, sys *system.System, gateway int, token string) (*authv1.Tokens, error) {
	t.Helper()
	res, err := authAt(sys, gateway).Refresh(t.Context(), &authv1.RefreshRequest{RefreshToken: token})
	return res.GetTokens(), err
}

// refreshReuseEndsSession: the predecessor of an unused token gives the same one
// again (a lost answer); a token from further back is theft, and ends the session with
// its sockets.
func refreshReuseEndsSession(t *testing.T, sys *system.System) {
	ada := register(t, sys, 0)
	conn := ada.socket(t, 1)
	r0 := ada.tokens.GetRefreshToken()
	t1, err := refresh(t, sys, 0, r0)
	require.NoError(t, err)
	require.Equal(t, ada.tokens.GetSessionId(), t1.GetSessionId())
	lost, err := refresh(t, sys, 1, r0)
	require.NoError(t, err, "the immediate predecessor, within the grace")
	require.Equal(t, t1.GetRefreshToken(), lost.GetRefreshToken())
	t2, err := refresh(t, sys, 0, t1.GetRefreshToken())
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, err = conn.Renew(ctx, t2.GetAccessToken())
	require.NoError(t, err, "a newer token of the session prolongs the socket")

	_, err = refresh(t, sys, 1, r0)
	require.Equal(t, errorv1.Reason_REASON_REFRESH_TOKEN_REUSED, rpc.ReasonOf(err), "%v", err)
	requireRevoked(t, conn, revokedWithin)
	_, err = refresh(t, sys, 0, t2.GetRefreshToken())
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "the whole family is dead: %v", err)
}

// refreshGraceEnds: ten seconds after its use, the predecessor is theft, too.
func refreshGraceEnds(t *testing.T, sys *system.System) {
	ada := register(t, sys, 0)
	conn := ada.socket(t, 1)
	r0 := ada.tokens.GetRefreshToken()
	t1, err := refresh(t, sys, 0, r0)
	require.NoError(t, err)
	began := time.Now()
	require.Eventually(t, func() bool {
		_, err := refresh(t, sys, 1, r0)
		return rpc.ReasonOf(err) == errorv1.Reason_REASON_REFRESH_TOKEN_REUSED
	}, soon, 250*time.Millisecond, "the grace ends")
	require.Greater(t, time.Since(began), 8*time.Second, "but not before ten seconds, less what the clock is coarse")
	requireRevoked(t, conn, revokedWithin)
	_, err = refresh(t, sys, 0, t1.GetRefreshToken())
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(err), "%v", err)
}
