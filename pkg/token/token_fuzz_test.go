package token_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
)

// fuzzKey is the same key in every process, so that a corpus with signed tokens
// stays good.
func fuzzKey(name string) (ed25519.PublicKey, token.SigningKey) {
	private := ed25519.NewKeyFromSeed([]byte(name + strings.Repeat("-", ed25519.SeedSize))[:ed25519.SeedSize])
	public, _ := private.Public().(ed25519.PublicKey)
	return public, token.SigningKey{ID: token.KeyID(public), Private: private}
}

// What SignAccess and ServiceSigner made once, with the keys of fuzzKey at start.
// They are constants because a token has a random id, and the processes of a fuzzer
// have to agree on what is good.
const (
	goodAccess    = "eyJhbGciOiJFZERTQSIsImtpZCI6Ikw1VTdkOGJrUjFtYmY4Y2IiLCJ0eXAiOiJhdCtqd3QifQ.eyJpc3MiOiJodHRwczovL2F1dGgudGVzdCIsImF1ZCI6InBhcmxleSIsInN1YiI6IjY3MzdjMTc3LTJkMDAtNTc5Mi05NDllLWZmZWNhNmU5ODYwYyIsInNpZCI6Ijk4YzgxYjU3LTQxMDMtNWNkYy1hODVhLWJiNGE1NmMwY2ZjZCIsInJvbGUiOiJ1c2VyIiwiaWF0IjoxODkzNTUzNDQ1LCJleHAiOjE4OTM1NTQwNDUsImp0aSI6ImQwZDljMWNiLWVmODMtNDM1ZC05MWJmLTExOGQzNDYzNDA4NSJ9.F6QRtnENwxzqLILkPy0NWS3ziPyZe9dR09VuCSS-mmvb7XVV6otnXEl8SnCVur5A3btjQGDGSuG8MgzbSd8RAQ"
	otherAccess   = "eyJhbGciOiJFZERTQSIsImtpZCI6Ikw1VTdkOGJrUjFtYmY4Y2IiLCJ0eXAiOiJhdCtqd3QifQ.eyJpc3MiOiJodHRwczovL2F1dGgudGVzdCIsImF1ZCI6InBhcmxleSIsInN1YiI6ImQzMTlkYWQzLTkzMzUtNDcwZS04MTU2LWQ2ZjRjMzA3YmMzOCIsInNpZCI6ImUyNjQyOTU1LWM1YzUtNDQwYS05YWJiLWJjMWY2OGRhMDU5NCIsInJvbGUiOiJ1c2VyIiwiaWF0IjoxODkzNTUzNDQ1LCJleHAiOjE4OTM1NTQwNDUsImp0aSI6IjIxY2EyOTlkLWI3NWMtNDBjOS04YWNjLWUxYjBlM2NlYjRkMiJ9.LaPFipkmYReppXC11mWTuMgzwsPQx9Ojm1iCsDwTEtIJWkH9zDCHTdd4k1JqPFjYYom_mp9BMw7pYgu4zITMAw"
	expiredAccess = "eyJhbGciOiJFZERTQSIsImtpZCI6Ikw1VTdkOGJrUjFtYmY4Y2IiLCJ0eXAiOiJhdCtqd3QifQ.eyJpc3MiOiJodHRwczovL2F1dGgudGVzdCIsImF1ZCI6InBhcmxleSIsInN1YiI6IjY3MzdjMTc3LTJkMDAtNTc5Mi05NDllLWZmZWNhNmU5ODYwYyIsInNpZCI6Ijk4YzgxYjU3LTQxMDMtNWNkYy1hODVhLWJiNGE1NmMwY2ZjZCIsInJvbGUiOiJ1c2VyIiwiaWF0IjoxODkzNTUyMjQ1LCJleHAiOjE4OTM1NTI4NDUsImp0aSI6IjRhNTAwZTg5LWQ3ZTAtNDYwZi04N2JhLWNkZjA5YzNkNjE2MiJ9.Kjwv-o57StlIfF8Vmd7sz_ydPhYYBlQ7ZE3-64CHXV9yEEinzXRYYiRurvINcjCLIP7PbWKxww0jkyd4e9VGAg"
	goodService   = "eyJhbGciOiJFZERTQSIsInR5cCI6InN2Yytqd3QifQ.eyJpc3MiOiJ1c2VyIiwiYXVkIjoiYXV0aCIsImlhdCI6MTg5MzU1MzQ0NSwiZXhwIjoxODkzNTUzNTA1LCJqdGkiOiI2MjlmMzA5Mi03ZTdiLTRjZTgtYTViYy0zOGU4N2NmM2M0NmIifQ.leY0NTh7cJg2bSsn644lg75p2odxqzPaTp0Hl59rCk4W54cIg0PgQEVmrCGMVHYmETiGQBouzwES-SC9UOAXBA"
	otherService  = "eyJhbGciOiJFZERTQSIsInR5cCI6InN2Yytqd3QifQ.eyJpc3MiOiJ1c2VyIiwiYXVkIjoibWVzc2FnaW5nIiwiaWF0IjoxODkzNTUzNDQ1LCJleHAiOjE4OTM1NTM1MDUsImp0aSI6IjJiNGNkNzJjLTM4ZjMtNGFhZi04NWQyLWQ1ZTM3MjkyYThjOCJ9.gOcRZKm7D9kogNuHkJSNSWWVechgarggs8rcB39-stZ6V38jAUOES0vyLhxbOK1tlchyFnYtuPTWx4KdfmV9Cw"
)

// tokenCost bounds what judging a token may allocate, of whatever size.
const tokenCost = 1 << 20

// requireRefused holds that a refusal is one of the four, and tells nothing of the
// token.
func requireRefused(t *testing.T, err error, raw string) {
	t.Helper()
	known := errors.Is(err, token.ErrInvalid) || errors.Is(err, token.ErrExpired) ||
		errors.Is(err, token.ErrRevoked) || errors.Is(err, token.ErrUnavailable)
	require.True(t, known, "%v", err)
	if len(raw) > 40 {
		require.NotContains(t, err.Error(), raw)
	}
}

// spoilt are a good token and what an attacker makes of it.
func spoilt(good string) []string {
	parts := strings.Split(good, ".")
	return []string{
		good, good + " ", good + "=", good + "\n", good[:len(good)-1], parts[0] + "." + parts[1] + ".", parts[0] + ".." + parts[2],
		"eyJhbGciOiJub25lIn0." + parts[1] + ".", "{\"alg\":\"EdDSA\"}." + parts[1] + "." + parts[2], ".." + good, "", ".", "..", "a.b.c",
		good[:len(good)-1] + "A", good[:len(good)-1] + "B", good[:len(good)-1] + "g", good[:len(good)-1] + "h", good[:len(good)-1] + "w", good[:len(good)-1] + "x",
		good[:len(good)-1] + "Q", good[:len(good)-1] + "R", // the last letter has bits that say nothing
		strings.Repeat("A", 5000), "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCIsImtpZCI6IiJ9." + parts[1] + "." + parts[2],
	}
}

// FuzzAccessToken holds that no string but one that was signed is taken, in the
// one spelling in which it was signed, and that it costs no more than its size.
func FuzzAccessToken(f *testing.F) {
	public, key := fuzzKey("auth")
	now := clock.NewFake(start)
	for _, raw := range spoilt(goodAccess) {
		f.Add(raw)
	}
	f.Add(expiredAccess)
	f.Fuzz(func(t *testing.T, raw string) {
		verifier := token.NewVerifier(token.StaticKeys{key.ID: public}, token.NewRevocations(now, life), now, issuer, audience)
		knowsHeader := token.NewVerifier(token.StaticKeys{key.ID: public}, token.NewRevocations(now, life), now, issuer, audience)
		_, err := knowsHeader.Verify(t.Context(), otherAccess)
		require.NoError(t, err)
		for _, verifier := range []*token.Verifier{verifier, verifier, knowsHeader} { // judged, then remembered
			var got token.Claims
			var err error
			testkit.Bounded(t, tokenCost, func() { got, err = verifier.Verify(t.Context(), raw) })
			if err != nil {
				require.Zero(t, got)
				requireRefused(t, err, raw)
				continue
			}
			require.Contains(t, []string{goodAccess, otherAccess}, raw, "a spelling that nobody signed")
			require.Equal(t, token.TypeAccess, token.TypeOf(raw))
			require.True(t, got.ExpiresAt.After(start))
		}
	})
}

// FuzzServiceToken holds the same of the tokens of services.
func FuzzServiceToken(f *testing.F) {
	public, _ := fuzzKey("user")
	for _, raw := range append(spoilt(goodService), otherService) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		verifier := token.NewServiceVerifier("auth", map[string]ed25519.PublicKey{"user": public}, clock.NewFake(start.Add(time.Second)))
		var caller string
		var err error
		testkit.Bounded(t, tokenCost, func() { caller, err = verifier.Verify(raw) })
		if err != nil {
			require.Empty(t, caller)
			requireRefused(t, err, raw)
			return
		}
		require.Equal(t, goodService, raw, "a spelling that nobody signed")
		require.Equal(t, "user", caller)
	})
}

// FuzzKeySet holds that what auth answers, whoever that is, gives only whole
// Ed25519 keys, and that those are the same after being written again.
func FuzzKeySet(f *testing.F) {
	public, key := fuzzKey("auth")
	good, err := token.MarshalKeySet(map[string]ed25519.PublicKey{key.ID: public})
	require.NoError(f, err)
	for _, data := range []string{
		string(good), `{"keys":[]}`, `{"keys":null}`, `{}`, `[]`, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","kid":"a"}]}`,
		`{"keys":[{"kty":"oct","k":"AA","kid":"a"}]}`, `{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"}]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`,
		`{"keys":[{"kty":"RSA","n":"AA","e":"AQAB","kid":"r","x5c":["AA"]}]}`,
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var keys map[string]ed25519.PublicKey
		var err error
		testkit.Bounded(t, 1<<20+1024*uint64(len(data)), func() { keys, err = token.ParseKeySet(data) })
		if err != nil {
			require.Empty(t, keys)
			return
		}
		require.NotEmpty(t, keys)
		for kid, public := range keys {
			require.NotEmpty(t, kid)
			require.Len(t, public, ed25519.PublicKeySize)
		}
		again, err := token.MarshalKeySet(keys)
		require.NoError(t, err)
		back, err := token.ParseKeySet(again)
		require.NoError(t, err)
		require.Equal(t, keys, back)
	})
}
