package admin

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	"github.com/parleychat/parley/services/auth"
)

func TestGrant(t *testing.T) {
	t.Parallel()
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	h := servicetest.Start(t, servicetest.Options{Settings: []string{
		"PARLEY_AUTH_KEY_ENCRYPTION_KEY=" + secret, "PARLEY_AUTH_REFRESH_SECRET=" + secret, "PARLEY_AUTH_PASSWORD_PEPPER=" + secret,
		"PARLEY_AUTH_BCRYPT_COST=4", "PARLEY_AUTH_INSECURE_PASSWORD_HASHING=true", "PARLEY_AUTH_REGISTER_AWAIT=none",
	}}, auth.Definition())
	client := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Anonymous()))
	anna, err := client.Register(t.Context(), &authv1.RegisterRequest{Email: "anna@example.org", Username: "anna", Password: "tr0mbone-lantern"})
	require.NoError(t, err)

	database := h.DB("auth").Config().ConnString()
	run := func(user, role string) (string, error) {
		var out bytes.Buffer
		err := grant(t.Context(), options{user: user, role: role, database: database}, &out)
		return out.String(), err
	}
	said, err := run("anna", "admin")
	require.NoError(t, err)
	require.Contains(t, said, "admin, before user")
	said, err = run("anna", "admin")
	require.NoError(t, err)
	require.Contains(t, said, "already")

	// The next refresh brings the role, and with it what admins may.
	res, err := client.Refresh(t.Context(), &authv1.RefreshRequest{RefreshToken: anna.GetTokens().GetRefreshToken()})
	require.NoError(t, err)
	admin := authv1connect.NewAdminServiceClient(h.Dial("auth", h.Token(res.GetTokens().GetAccessToken())))
	record, err := admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{UserId: anna.GetUserId()})
	require.NoError(t, err)
	granted := record.GetEvents()[len(record.GetEvents())-2] // after the registration
	require.Equal(t, "role.set", granted.GetAction())
	require.Equal(t, authv1.AuditActor_AUDIT_ACTOR_OPERATOR, granted.GetActor())
	require.NotEmpty(t, granted.GetDetails()["operator"])

	_, err = run("anna", "user")
	require.ErrorContains(t, err, "no admin left")
	_, err = run("nobody", "admin")
	require.ErrorContains(t, err, "no such account")
	_, err = run("anna", "emperor")
	require.ErrorContains(t, err, "--role")
	_, err = run("", "admin")
	require.ErrorContains(t, err, "--user")
	err = grant(t.Context(), options{user: "anna", role: "user", data: t.TempDir()}, &bytes.Buffer{})
	require.ErrorContains(t, err, databaseVariable)
}
