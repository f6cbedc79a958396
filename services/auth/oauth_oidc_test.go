package auth_test

import (
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func TestOAuthProviderThatIsAway(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	_, challenge := newVerifier()
	start := func() error {
		_, err := a.oauth.StartOAuth(t.Context(), &authv1.StartOAuthRequest{Provider: "house", RedirectUri: idpReturn, ClientChallenge: challenge})
		return err
	}
	down := func(is bool) { a.idp.change(func() { a.idp.down = is }) }
	down(true)
	providerAway(t, start())
	down(false)
	a.Clock.Advance(6 * time.Second) // it is left alone for a while
	require.NoError(t, start())
	// Known by now: flows begin, and end when it is back.
	down(true)
	for _, provider := range []string{"house", "facebook"} {
		_, err := a.visit(provider, person1("anna"))
		providerAway(t, err)
	}
	// A configuration that is not the issuer's own.
	down(false)
	a.idp.change(func() { a.idp.discovery = func(d map[string]any) { d["issuer"] = "https://evil.example" } })
	a.Clock.Advance(25 * time.Hour)
	_, err := a.visit("house", person1("anna"))
	require.NoError(t, err, "the old configuration serves on")
}

// A provider that takes longer to fail than it is left alone afterwards is asked once for all who wait, and keeps
// nobody waiting who can do with its old configuration.
func TestOAuthProviderThatHangs(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	start := func() error {
		_, challenge := newVerifier()
		_, err := a.oauth.StartOAuth(t.Context(), &authv1.StartOAuthRequest{Provider: "house", RedirectUri: idpReturn, ClientChallenge: challenge})
		return err
	}
	a.idp.change(func() {
		a.idp.down = true
		a.idp.holding = func() { a.Clock.Advance(6 * time.Second) }
	})
	errs := make([]error, 8)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() { errs[i] = start() })
	}
	group.Wait()
	for _, err := range errs {
		providerAway(t, err)
	}
	a.idp.change(func() {
		require.Equal(t, 1, a.idp.calls)
		a.idp.down, a.idp.holding = false, nil
	})
	a.Clock.Advance(6 * time.Second)
	require.NoError(t, start())

	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	a.idp.change(func() {
		a.idp.holding = func() {
			once.Do(func() { close(asked) })
			<-release
		}
	})
	defer close(release)
	a.Clock.Advance(25 * time.Hour)
	require.NoError(t, start(), "the old configuration serves on")
	<-asked
	require.NoError(t, start())
}

// An ID token that is not exactly what was asked for confirms nobody.
func TestOAuthRefusesIDTokens(t *testing.T) {
	t.Parallel()
	a := startAbroad(t)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for name, tamper := range map[string]func(claims map[string]any){
		"another nonce":         func(c map[string]any) { c["nonce"] = "another" },
		"no nonce":              func(c map[string]any) { delete(c, "nonce") },
		"another audience":      func(c map[string]any) { c["aud"] = "another" },
		"another issuer":        func(c map[string]any) { c["iss"] = "https://evil.example" },
		"an expired one":        func(c map[string]any) { c["exp"] = a.Clock.Now().Add(-time.Minute).Unix() },
		"made for another":      func(c map[string]any) { c["aud"], c["azp"] = []string{idpClient, "another"}, "another" },
		"no subject":            func(c map[string]any) { c["sub"] = "" },
		"a subject with a line": func(c map[string]any) { c["sub"] = "a\nb" },
		"a huge subject":        func(c map[string]any) { c["sub"] = strings.Repeat("x", 256) },
	} {
		a.idp.change(func() { a.idp.tamper = tamper })
		_, err := a.visit("house", person1("anna"))
		require.Equal(t, errorv1.Reason_REASON_OAUTH_REFUSED.String(), rpc.ReasonOf(err).String(), name)
	}
	a.idp.change(func() { a.idp.tamper, a.idp.signer = nil, stranger })
	_, err = a.visit("house", person1("anna"))
	refusedAbroad(t, err)
	a.idp.change(func() { a.idp.signer = a.idp.key })
	_, err = a.visit("house", person1("anna"))
	require.NoError(t, err)
}
