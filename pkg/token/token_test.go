package token_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/token"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/exec.(*Cmd).Wait"))
}

const (
	issuer   = "https://auth.test"
	audience = "parley"
	life     = 10 * time.Minute
)

var start = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

type kit struct {
	clock    *clock.Fake
	key      token.SigningKey
	public   ed25519.PublicKey
	revoked  *token.Revocations
	verifier *token.Verifier
}

func newKit(t testing.TB) *kit {
	t.Helper()
	k := &kit{clock: clock.NewFake(start)}
	k.public, k.key = newKey(t)
	k.revoked = token.NewRevocations(k.clock, life)
	k.verifier = token.NewVerifier(token.StaticKeys{k.key.ID: k.public}, k.revoked, k.clock, issuer, audience)
	return k
}

func newKey(t testing.TB) (ed25519.PublicKey, token.SigningKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	return public, token.SigningKey{ID: token.KeyID(public), Private: private}
}

func (k *kit) claims() token.Claims {
	now := k.clock.Now()
	return token.Claims{
		UserID: uuid.New(), SessionID: uuid.New(), Role: identity.RoleModerator,
		IssuedAt: now, ExpiresAt: now.Add(life),
	}
}

func (k *kit) sign(t testing.TB, c token.Claims) string {
	t.Helper()
	raw, err := token.SignAccess(k.key, c, issuer, audience)
	require.NoError(t, err)
	return raw
}

// forge signs any header and claims with any key: what an attacker could try.
func forge(t *testing.T, alg jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any, claims map[string]any) string {
	t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: header}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	require.NoError(t, err)
	body, err := json.Marshal(claims)
	require.NoError(t, err)
	signed, err := signer.Sign(body)
	require.NoError(t, err)
	raw, err := signed.CompactSerialize()
	require.NoError(t, err)
	return raw
}

func TestAccessTokenSaysWhatWasSigned(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	want := k.claims()
	raw := k.sign(t, want)
	for range 2 { // verified, then remembered
		got, err := k.verifier.Verify(t.Context(), raw)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, want.UserID, got.Caller().UserID)
	}
	require.Equal(t, token.TypeAccess, token.TypeOf(raw))
}

func TestAccessTokenExpiresAlsoWhenRemembered(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	raw := k.sign(t, k.claims())
	k.clock.Advance(life - time.Second)
	_, err := k.verifier.Verify(t.Context(), raw)
	require.NoError(t, err)
	k.clock.Advance(time.Second)
	_, err = k.verifier.Verify(t.Context(), raw)
	require.ErrorIs(t, err, token.ErrExpired)
}

// goodHeader and goodClaims pass; each case below spoils one thing.
func (k *kit) goodHeader() map[jose.HeaderKey]any {
	return map[jose.HeaderKey]any{"typ": token.TypeAccess, "kid": k.key.ID}
}

func (k *kit) goodClaims() map[string]any {
	return map[string]any{
		"iss": issuer, "aud": audience, "sub": uuid.NewString(), "sid": uuid.NewString(), "role": "user",
		"iat": start.Unix(), "exp": start.Add(life).Unix(),
	}
}

func TestForgedAccessTokensAreInvalid(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	otherPublic, other := newKey(t)
	_, err := k.verifier.Verify(t.Context(), forge(t, jose.EdDSA, k.key.Private, k.goodHeader(), k.goodClaims()))
	require.NoError(t, err, "the pattern of all the others is good")

	claim := func(name string, value any) func(h map[jose.HeaderKey]any, c map[string]any) {
		return func(_ map[jose.HeaderKey]any, c map[string]any) { c[name] = value }
	}
	header := func(name jose.HeaderKey, value any) func(h map[jose.HeaderKey]any, c map[string]any) {
		return func(h map[jose.HeaderKey]any, _ map[string]any) { h[name] = value }
	}
	cases := map[string]func(h map[jose.HeaderKey]any, c map[string]any){
		"another issuer":       claim("iss", "https://evil.test"),
		"another audience":     claim("aud", "elsewhere"),
		"list of audiences":    claim("aud", []string{audience}),
		"no subject":           claim("sub", ""),
		"zero subject":         claim("sub", uuid.Nil.String()),
		"no session":           claim("sid", "x"),
		"unknown role":         claim("role", "root"),
		"from the future":      claim("iat", start.Add(2*time.Minute).Unix()),
		"without expiry":       claim("exp", 0),
		"without issue":        claim("iat", 0),
		"too long a life":      claim("exp", start.Add(life+time.Second).Unix()),
		"service token's type": header("typ", token.TypeService),
		"plain type":           header("typ", "JWT"),
		"unknown key":          header("kid", token.KeyID(otherPublic)),
		"no key id":            header("kid", ""),
		"key by URL":           header("jku", "https://evil.test/keys"),
		"certificate by URL":   header("x5u", "https://evil.test/cert"),
		"critical extension":   header("crit", []string{"exp"}),
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := k.goodHeader(), k.goodClaims()
			spoil(h, c)
			_, err := k.verifier.Verify(t.Context(), forge(t, jose.EdDSA, k.key.Private, h, c))
			require.ErrorIs(t, err, token.ErrInvalid)
		})
	}
	segment := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body, err := json.Marshal(k.goodClaims())
	require.NoError(t, err)
	good := forge(t, jose.EdDSA, k.key.Private, k.goodHeader(), k.goodClaims())
	raws := map[string]string{
		"another key":     forge(t, jose.EdDSA, other.Private, k.goodHeader(), k.goodClaims()),
		"public key HMAC": forge(t, jose.HS256, []byte(k.public), k.goodHeader(), k.goodClaims()),
		"algorithm none":  segment(`{"alg":"none","typ":"at+jwt","kid":"`+k.key.ID+`"}`) + "." + segment(string(body)) + ".",
		"embedded key": forge(t, jose.EdDSA, other.Private, map[jose.HeaderKey]any{
			"typ": token.TypeAccess, "kid": k.key.ID, "jwk": jose.JSONWebKey{Key: otherPublic},
		}, k.goodClaims()),
		"empty":           "",
		"garbage":         "a.b.c",
		"changed":         good[:len(good)-6] + "AAAAAA",
		"white space":     good + "\n",
		"huge":            strings.Repeat("a", 1<<16),
		"JSON serialized": `{"payload":"` + segment(string(body)) + `","signatures":[]}`,
	}
	for name, raw := range raws {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := k.verifier.Verify(t.Context(), raw)
			require.ErrorIs(t, err, token.ErrInvalid)
		})
	}
}

func TestSignAccessRefusesIncompleteClaims(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	for name, spoil := range map[string]func(*token.Claims){
		"no role":    func(c *token.Claims) { c.Role = identity.RoleNone },
		"no user":    func(c *token.Claims) { c.UserID = uuid.Nil },
		"no session": func(c *token.Claims) { c.SessionID = uuid.Nil },
		"no life":    func(c *token.Claims) { c.ExpiresAt = c.IssuedAt },
	} {
		c := k.claims()
		spoil(&c)
		_, err := token.SignAccess(k.key, c, issuer, audience)
		require.Error(t, err, name)
	}
	_, err := token.SignAccess(token.SigningKey{ID: "x"}, k.claims(), issuer, audience)
	require.Error(t, err)
}

func BenchmarkVerifyCached(b *testing.B) {
	k := newKit(b)
	raw := k.sign(b, k.claims())
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.verifier.Verify(ctx, raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyFirst judges tokens that were never seen, of a key that was.
func BenchmarkVerifyFirst(b *testing.B) {
	k := newKit(b)
	raws := make([]string, 10_000)
	for i := range raws {
		raws[i] = k.sign(b, k.claims())
	}
	ctx := b.Context()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(raws) == 0 {
			k.verifier = token.NewVerifier(token.StaticKeys{k.key.ID: k.public}, k.revoked, k.clock, issuer, audience)
		}
		if _, err := k.verifier.Verify(ctx, raws[i%len(raws)]); err != nil {
			b.Fatal(err)
		}
	}
}
