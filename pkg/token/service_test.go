package token_test

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/token"
)

func newSigner(t *testing.T, name string, clk clock.Clock) (*token.ServiceSigner, ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	s, err := token.NewServiceSigner(name, private, clk)
	require.NoError(t, err)
	return s, public, private
}

func TestServiceTokenNamesItsCaller(t *testing.T) {
	t.Parallel()
	clk := clock.NewFake(start)
	user, userKey, _ := newSigner(t, "user", clk)
	verifier := token.NewServiceVerifier("auth", map[string]ed25519.PublicKey{"user": userKey}, clk)

	raw, err := user.Token("auth")
	require.NoError(t, err)
	require.Equal(t, token.TypeService, token.TypeOf(raw))
	for range 2 {
		caller, err := verifier.Verify(raw)
		require.NoError(t, err)
		require.Equal(t, "user", caller)
	}
	again, err := user.Token("auth")
	require.NoError(t, err)
	require.Equal(t, raw, again, "reused while young")
	clk.Advance(31 * time.Second)
	again, err = user.Token("auth")
	require.NoError(t, err)
	require.NotEqual(t, raw, again)
	clk.Advance(30 * time.Second)
	_, err = verifier.Verify(raw)
	require.ErrorIs(t, err, token.ErrExpired)

	elsewhere, err := user.Token("messaging")
	require.NoError(t, err)
	_, err = verifier.Verify(elsewhere)
	require.ErrorIs(t, err, token.ErrInvalid)
}

func TestAServiceCannotSpeakForAnother(t *testing.T) {
	t.Parallel()
	clk := clock.NewFake(start)
	_, userKey, _ := newSigner(t, "user", clk)
	evil, evilKey, evilPrivate := newSigner(t, "user", clk) // says that it is user
	verifier := token.NewServiceVerifier("auth", map[string]ed25519.PublicKey{"user": userKey, "evil": evilKey}, clk)
	raw, err := evil.Token("auth")
	require.NoError(t, err)
	_, err = verifier.Verify(raw)
	require.ErrorIs(t, err, token.ErrInvalid)

	stranger, _, _ := newSigner(t, "stranger", clk)
	raw, err = stranger.Token("auth")
	require.NoError(t, err)
	_, err = verifier.Verify(raw)
	require.ErrorIs(t, err, token.ErrInvalid)

	header := map[jose.HeaderKey]any{"typ": token.TypeService}
	long := forge(t, jose.EdDSA, evilPrivate, header, map[string]any{
		"iss": "evil", "aud": "auth", "iat": start.Unix(), "exp": start.Add(time.Hour).Unix(),
	})
	_, err = verifier.Verify(long)
	require.ErrorIs(t, err, token.ErrInvalid, "a life of an hour")
	asAccess := forge(t, jose.EdDSA, evilPrivate, map[jose.HeaderKey]any{"typ": token.TypeAccess}, map[string]any{
		"iss": "evil", "aud": "auth", "iat": start.Unix(), "exp": start.Add(time.Minute).Unix(),
	})
	_, err = verifier.Verify(asAccess)
	require.ErrorIs(t, err, token.ErrInvalid, "of the other kind")
}

func TestServiceSignerRefusesABadKey(t *testing.T) {
	t.Parallel()
	_, err := token.NewServiceSigner("user", nil, clock.System())
	require.Error(t, err)
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	_, err = token.NewServiceSigner("", private, clock.System())
	require.Error(t, err)
}
