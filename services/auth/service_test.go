package auth_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/token"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// password is one that nothing is wrong with.
const password = "tr0mbone-lantern"

// start runs auth with the quickest hashing and nobody to wait for; later settings win.
func start(t *testing.T, settings ...string) (*servicetest.Harness, authv1connect.AuthServiceClient) {
	t.Helper()
	return startWith(t, servicetest.Options{Settings: settings})
}

func startWith(t *testing.T, options servicetest.Options) (*servicetest.Harness, authv1connect.AuthServiceClient) {
	t.Helper()
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	options.Settings = append([]string{
		"PARLEY_AUTH_KEY_ENCRYPTION_KEY=" + secret, "PARLEY_AUTH_REFRESH_SECRET=" + secret, "PARLEY_AUTH_PASSWORD_PEPPER=" + secret,
		"PARLEY_AUTH_BCRYPT_COST=4", "PARLEY_AUTH_INSECURE_PASSWORD_HASHING=true", "PARLEY_AUTH_REGISTER_AWAIT=none",
	}, options.Settings...)
	h := servicetest.Start(t, options, auth.Definition())
	return h, authv1connect.NewAuthServiceClient(h.Dial("auth", h.Anonymous()))
}

// register makes an account of that name, with the address name@example.org.
func register(t *testing.T, client authv1connect.AuthServiceClient, name string) *authv1.RegisterResponse {
	t.Helper()
	res, err := client.Register(t.Context(), person(name))
	require.NoError(t, err)
	return res
}

func person(name string) *authv1.RegisterRequest {
	return &authv1.RegisterRequest{Email: name + "@example.org", Username: name, Password: password}
}

func logIn(ctx context.Context, client authv1connect.AuthServiceClient, login, password string) (*authv1.LogInResponse, error) {
	return client.LogIn(ctx, &authv1.LogInRequest{Login: login, Password: password})
}

func refresh(ctx context.Context, client authv1connect.AuthServiceClient, token string) (*authv1.Tokens, error) {
	res, err := client.Refresh(ctx, &authv1.RefreshRequest{RefreshToken: token})
	return res.GetTokens(), err
}

// from is a context whose calls come through a gateway from that address.
func from(t *testing.T, address string) context.Context {
	t.Helper()
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("X-Forwarded-For", address)
	return ctx
}

// verifier checks tokens as any other service does: by the key set that auth serves.
func verifier(h *servicetest.Harness) *token.Verifier {
	client, url := h.HTTP("auth")
	keys := token.RemoteKeys(client, url+"/.well-known/jwks.json", h.Clock)
	return token.NewVerifier(keys, token.NewRevocations(h.Clock, servicetest.TokenLife), h.Clock, servicetest.Issuer, servicetest.Audience)
}

func requireReason(t *testing.T, err error, code connect.Code, reason errorv1.Reason) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code.String(), connect.CodeOf(err).String())
	require.Equal(t, reason.String(), rpc.ReasonOf(err).String())
}

func TestKeySet(t *testing.T) {
	t.Parallel()

	t.Run("IsServedToAnybodyForAWhile", func(t *testing.T) {
		t.Parallel()
		h, _ := start(t)
		client, url := h.HTTP("auth")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/.well-known/jwks.json", nil)
		require.NoError(t, err)
		res, err := client.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		require.Equal(t, http.StatusOK, res.StatusCode)
		require.Equal(t, "public, max-age=300", res.Header.Get("Cache-Control"))
		require.Len(t, keySet(t, h), 1)
	})

	t.Run("RotatesWithoutATokenEverBeingRefused", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		anna := register(t, client, "anna")
		first := keySet(t, h)
		refreshToken := anna.GetTokens().GetRefreshToken()
		access := func() string {
			tokens, err := refresh(t.Context(), client, refreshToken)
			require.NoError(t, err)
			refreshToken = tokens.GetRefreshToken()
			return tokens.GetAccessToken()
		}
		rotated := func(want int) {
			require.Eventually(t, func() bool {
				var keys int
				err := h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM signing_key").Scan(&keys)
				return err == nil && keys == want
			}, 20*time.Second, 10*time.Millisecond, "the job brings the keys in line")
			h.Clock.Advance(time.Minute) // by then every replica has read them
			require.Len(t, keySet(t, h), want)
		}
		verifies := func(raw string) {
			_, err := verifier(h).Verify(t.Context(), raw)
			require.NoError(t, err)
		}

		h.Clock.Advance(29 * 24 * time.Hour)
		access() // keeps the session from idling out
		h.Clock.Advance(23*time.Hour + 1*time.Minute)
		rotated(2)
		// Announced and not yet used: whoever has only the old set still knows every token.
		announced := access()
		require.Contains(t, first, keyOf(t, announced))
		verifies(announced)

		h.Clock.Advance(57 * time.Minute)
		old := access()
		require.Contains(t, first, keyOf(t, old))
		h.Clock.Advance(2 * time.Minute)
		fresh := access()
		require.NotContains(t, first, keyOf(t, fresh))
		verifies(fresh)
		verifies(old)

		h.Clock.Advance(75 * time.Minute)
		rotated(1)
		require.NotContains(t, keySet(t, h), keyOf(t, old))
		verifies(access())
	})

	t.Run("IsSharedByReplicas", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		register(t, client, "anna")
		second := h.Add(auth.Definition())
		other := authv1connect.NewAuthServiceClient(h.DialInstance(second, h.Anonymous()))
		res, err := logIn(t.Context(), other, "anna", password)
		require.NoError(t, err)
		_, err = verifier(h).Verify(t.Context(), res.GetTokens().GetAccessToken())
		require.NoError(t, err)
		require.Len(t, keySet(t, h), 1)
	})

	t.Run("PrivateKeysLieSealed", func(t *testing.T) {
		t.Parallel()
		h, _ := start(t)
		var sealed []byte
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT sealed_seed FROM signing_key").Scan(&sealed))
		require.Len(t, sealed, 12+32+16, "nonce, seed, tag")
	})
}

// keySet fetches the key ids that auth shows.
func keySet(t *testing.T, h *servicetest.Harness) map[string]bool {
	t.Helper()
	client, url := h.HTTP("auth")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/.well-known/jwks.json", nil)
	require.NoError(t, err)
	res, err := client.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	return keyIDs(t, res.Body)
}

func keyIDs(t *testing.T, body io.Reader) map[string]bool {
	t.Helper()
	data, err := io.ReadAll(body)
	require.NoError(t, err)
	keys, err := token.ParseKeySet(data)
	require.NoError(t, err)
	ids := map[string]bool{}
	for kid := range keys {
		ids[kid] = true
	}
	return ids
}

// keyOf reads the key id in a token's header.
func keyOf(t *testing.T, raw string) string {
	t.Helper()
	segment, _, _ := strings.Cut(raw, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(segment)
	require.NoError(t, err)
	var header struct {
		Kid string `json:"kid"`
	}
	require.NoError(t, json.Unmarshal(decoded, &header))
	return header.Kid
}
