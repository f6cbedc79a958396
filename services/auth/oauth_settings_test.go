package auth_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/services/auth"
)

func TestOAuthSettings(t *testing.T) {
	t.Parallel()
	const prefix = "PARLEY_AUTH_OAUTH_"
	for says, settings := range map[string][]string{
		"REDIRECT_URIS: missing":          {"GOOGLE_CLIENT_ID=a", "GOOGLE_CLIENT_SECRET=b"},
		"GOOGLE_CLIENT_SECRET":            {"GOOGLE_CLIENT_ID=a", "REDIRECT_URIS=" + idpReturn},
		"FACEBOOK_CLIENT_SECRET":          {"FACEBOOK_CLIENT_ID=a", "REDIRECT_URIS=" + idpReturn},
		"OIDC_CLIENT_IDS: house":          {"OIDC_ISSUERS=house=https://id.example.org", "REDIRECT_URIS=" + idpReturn},
		`OIDC_ISSUERS: "http://id`:        {"OIDC_ISSUERS=house=http://id.example.org", "OIDC_CLIENT_IDS=house=a", "REDIRECT_URIS=" + idpReturn},
		`OIDC_ISSUERS: "google" is no`:    {"OIDC_ISSUERS=google=https://id.example.org", "OIDC_CLIENT_IDS=google=a", "REDIRECT_URIS=" + idpReturn},
		"OIDC_DISPLAY_NAMES: home has no": {"OIDC_DISPLAY_NAMES=home=Home"},
		`REDIRECT_URIS: "http://chat`:     {"REDIRECT_URIS=http://chat.example.org/oauth"},
		`REDIRECT_URIS: "/oauth"`:         {"REDIRECT_URIS=/oauth"},
		`REDIRECT_URIS: "https://a/#b"`:   {"REDIRECT_URIS=https://a/#b"},
		`REDIRECT_URIS: "javascript:`:     {"REDIRECT_URIS=javascript:alert(1)"},
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			var env []string
			for _, s := range settings {
				env = append(env, prefix+s)
			}
			require.ErrorContains(t, startFails(t, env...), prefix+says)
		})
	}
}

// startFails starts auth with settings that it refuses.
func startFails(t *testing.T, settings ...string) error {
	t.Helper()
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	return servicetest.StartFails(t, servicetest.Options{Settings: append([]string{
		"PARLEY_AUTH_KEY_ENCRYPTION_KEY=" + secret, "PARLEY_AUTH_REFRESH_SECRET=" + secret, "PARLEY_AUTH_PASSWORD_PEPPER=" + secret,
	}, settings...)}, auth.Definition())
}
