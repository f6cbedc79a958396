package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// grant gives the person a role as the operator does, by the command line, and gets them a token with it.
func (p *person) grant(t *testing.T, role string) {
	t.Helper()
	args := []string{"admin", "grant", "--user", p.username, "--role", role}
	env := os.Environ()
	if p.sys.Shape == system.OneProcess {
		args = append(args, "--data", p.sys.Data())
	} else {
		env = append(env, "PARLEY_AUTH_DATABASE_URL="+p.sys.Database("auth"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, system.Program(t, "parley"), args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "grant: %s", out)
	tokens, err := refresh(t, p.sys, 0, p.tokens.GetRefreshToken())
	require.NoError(t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens = tokens
}

// logOutEverywhereClosesSockets: the sockets of all sessions of a person close, on every gateway, except those of the
// session that stays; then that one's too. Nobody else notices.
func logOutEverywhereClosesSockets(t *testing.T, sys *system.System) {
	ada, bob := register(t, sys, 0), register(t, sys, 1)
	second, third := ada.logIn(t), ada.logIn(t)
	leaving := []*client.Conn{second.socket(t, 0), second.socket(t, 1), third.socket(t, 1)}
	staying := []*client.Conn{ada.socket(t, 1), bob.socket(t, 0)}
	sessions := authv1connect.NewSessionServiceClient(web, base(sys, 0), ada.bearer())

	res, err := sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{KeepCurrent: true})
	require.NoError(t, err)
	require.EqualValues(t, 2, res.GetRevoked())
	for _, conn := range leaving {
		requireRevoked(t, conn, revokedWithin)
	}
	requireOpen(t, staying...)

	_, err = sessions.RevokeAllSessions(t.Context(), &authv1.RevokeAllSessionsRequest{})
	require.NoError(t, err)
	requireRevoked(t, staying[0], revokedWithin)
	requireOpen(t, staying[1])
}

// suspensionClosesSockets: an admin by the operator's command suspends somebody, whose sockets close on every gateway and
// who does not come back until the suspension is lifted.
func suspensionClosesSockets(t *testing.T, sys *system.System) {
	root, eve := register(t, sys, 0), register(t, sys, 1)
	root.grant(t, "admin")
	conns := []*client.Conn{eve.socket(t, 0), eve.socket(t, 1)}
	watching := root.socket(t, 0)
	admin := authv1connect.NewAdminServiceClient(web, base(sys, 1), root.bearer())

	_, err := admin.SuspendAccount(t.Context(), &authv1.SuspendAccountRequest{UserId: eve.id, Note: "spam"})
	require.NoError(t, err)
	for _, conn := range conns {
		requireRevoked(t, conn, revokedWithin)
	}
	requireOpen(t, watching)
	_, err = refresh(t, sys, 0, eve.tokens.GetRefreshToken())
	require.Equal(t, errorv1.Reason_REASON_ACCOUNT_SUSPENDED, rpc.ReasonOf(err), "%v", err)
	_, err = authAt(sys, 0).LogIn(t.Context(), &authv1.LogInRequest{Login: eve.username, Password: password})
	require.Equal(t, errorv1.Reason_REASON_ACCOUNT_SUSPENDED, rpc.ReasonOf(err), "%v", err)

	_, err = admin.UnsuspendAccount(t.Context(), &authv1.UnsuspendAccountRequest{UserId: eve.id})
	require.NoError(t, err)
	requireOpen(t, eve.logIn(t).socket(t, 0))
}

// requireOpen requires that connections answer.
func requireOpen(t *testing.T, conns ...*client.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for _, conn := range conns {
		require.NoError(t, conn.Ping(ctx), "the socket is open")
	}
}
