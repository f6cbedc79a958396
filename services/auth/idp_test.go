package auth_test

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
)

const (
	idpClient  = "parley-client"
	idpSecret  = "parley-secret"
	idpReturn  = "https://chat.example.org/oauth"
	idpForeign = "https://evil.example/oauth"
)

// idp is a provider on this machine: OpenID Connect with discovery and RS256, and what Facebook has instead. It
// checks what a provider has to check: client, redirect URI, PKCE, and that a code is used once.
type idp struct {
	*httptest.Server

	t   *testing.T
	key *rsa.PrivateKey

	mu    sync.Mutex
	now   func() time.Time
	codes map[string]grant
	// down has every answer be 503, after what holding does.
	down    bool
	holding func()
	// tamper changes an ID token before it is signed with signer.
	tamper func(claims map[string]any)
	signer *rsa.PrivateKey
	// userinfo is what the endpoint tells.
	userinfo map[string]any
	// discovery changes the configuration.
	discovery func(document map[string]any)
	calls     int
}

// grant is a code that was given out.
type grant struct {
	who                    map[string]any
	nonce, challenge, back string
}

func newIDP(t *testing.T) *idp {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p := &idp{t: t, key: key, signer: key, codes: map[string]grant{}, now: func() time.Time { return servicetest.Noon }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.configuration)
	mux.HandleFunc("GET /keys", p.keys)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", p.info)
	mux.HandleFunc("POST /graph/oauth/access_token", p.graphToken)
	mux.HandleFunc("GET /graph/me", p.graphMe)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.calls++
		down, holding := p.down, p.holding
		p.mu.Unlock()
		if holding != nil {
			holding()
		}
		if down {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// change sets a knob while requests may be under way.
func (p *idp) change(set func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set()
}

// settings have auth log in with it, as two providers.
func (p *idp) settings() []string {
	const prefix = "PARLEY_AUTH_OAUTH_"
	return []string{
		prefix + "ALLOW_PRIVATE_NETWORKS=true", prefix + "REDIRECT_URIS=com.example.chat:/oauth," + idpReturn,
		prefix + "OIDC_ISSUERS=house=" + p.URL, prefix + "OIDC_CLIENT_IDS=house=" + idpClient,
		prefix + "OIDC_CLIENT_SECRETS=house=" + idpSecret, prefix + "OIDC_DISPLAY_NAMES=house=The House",
		prefix + "FACEBOOK_CLIENT_ID=" + idpClient, prefix + "FACEBOOK_CLIENT_SECRET=" + idpSecret,
		prefix + "FACEBOOK_DIALOG_URL=" + p.URL + "/dialog", prefix + "FACEBOOK_GRAPH_URL=" + p.URL + "/graph",
		prefix + "START_LIMIT=0",
	}
}

// consent is a person who says yes to an authorization URL: the code that the redirect carries.
func (p *idp) consent(authorization string, who map[string]any) (code, state string) {
	p.t.Helper()
	u, err := url.Parse(authorization)
	require.NoError(p.t, err)
	q := u.Query()
	require.Equal(p.t, "code", q.Get("response_type"))
	require.Equal(p.t, idpClient, q.Get("client_id"))
	require.Equal(p.t, "S256", q.Get("code_challenge_method"))
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	code = hex.EncodeToString(raw[:])
	p.change(func() { p.codes[code] = grant{who, q.Get("nonce"), q.Get("code_challenge"), q.Get("redirect_uri")} })
	return code, q.Get("state")
}

func (p *idp) answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		p.t.Errorf("answer of the provider: %v", err)
	}
}

func (p *idp) configuration(w http.ResponseWriter, _ *http.Request) {
	document := map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
		"jwks_uri": p.URL + "/keys", "userinfo_endpoint": p.URL + "/userinfo",
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.discovery != nil {
		p.discovery(document)
	}
	p.answer(w, http.StatusOK, document)
}

func (p *idp) keys(w http.ResponseWriter, _ *http.Request) {
	p.answer(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
}

// redeem checks a code as RFC 6749 and RFC 7636 ask, and uses it up.
func (p *idp) redeem(w http.ResponseWriter, r *http.Request) (grant, bool) {
	refuse := func(reason string) (grant, bool) {
		p.answer(w, http.StatusBadRequest, map[string]any{"error": reason})
		return grant{}, false
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.FormValue("client_id"), r.FormValue("client_secret")
	}
	if id != idpClient || secret != idpSecret {
		return refuse("invalid_client")
	}
	p.mu.Lock()
	g, known := p.codes[r.FormValue("code")]
	delete(p.codes, r.FormValue("code"))
	p.mu.Unlock()
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	if !known || g.back != r.FormValue("redirect_uri") || base64.RawURLEncoding.EncodeToString(sum[:]) != g.challenge {
		return refuse("invalid_grant")
	}
	return g, true
}

func (p *idp) token(w http.ResponseWriter, r *http.Request) {
	g, ok := p.redeem(w, r)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	claims := map[string]any{
		"iss": p.URL, "aud": idpClient, "nonce": g.nonce, "iat": p.now().Unix(), "exp": p.now().Add(time.Hour).Unix(),
	}
	maps.Copy(claims, g.who)
	if p.tamper != nil {
		p.tamper(claims)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: p.signer},
		(&jose.SignerOptions{}).WithHeader("kid", "1").WithType("JWT"))
	if err != nil {
		p.t.Errorf("make a signer: %v", err)
	}
	id, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		p.t.Errorf("sign an ID token: %v", err)
	}
	p.answer(w, http.StatusOK, map[string]any{"access_token": "access", "token_type": "Bearer", "expires_in": 3600, "id_token": id})
}

func (p *idp) info(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer access" || p.userinfo == nil {
		p.answer(w, http.StatusUnauthorized, map[string]any{})
		return
	}
	p.answer(w, http.StatusOK, p.userinfo)
}

// graphToken carries the person in the token itself.
func (p *idp) graphToken(w http.ResponseWriter, r *http.Request) {
	g, ok := p.redeem(w, r)
	if !ok {
		return
	}
	who, err := json.Marshal(g.who)
	if err != nil {
		p.t.Errorf("encode a person: %v", err)
	}
	p.answer(w, http.StatusOK, map[string]any{"access_token": base64.RawURLEncoding.EncodeToString(who), "token_type": "bearer", "expires_in": 3600})
}

func (p *idp) graphMe(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("Authorization")[len("Bearer "):]
	mac := hmac.New(sha256.New, []byte(idpSecret))
	mac.Write([]byte(token))
	if r.FormValue("appsecret_proof") != hex.EncodeToString(mac.Sum(nil)) || r.FormValue("fields") != "id,name,email" {
		p.answer(w, http.StatusBadRequest, map[string]any{"error": map[string]any{"message": "Invalid appsecret_proof"}})
		return
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		p.t.Errorf("decode a token: %v", err)
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(raw); err != nil {
		p.t.Errorf("answer of the Graph API: %v", err)
	}
}
