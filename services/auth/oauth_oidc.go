package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/parleychat/parley/pkg/clock"
)

const (
	// discoveryAge is after how long a provider's configuration is read again. Its keys are fetched when one is
	// unknown, whatever the age.
	discoveryAge = 24 * time.Hour
	// discoveryPause is how long a provider that did not answer is left alone.
	discoveryPause = 5 * time.Second
)

// oidcProvider is any OpenID Connect provider, by discovery of its issuer.
type oidcProvider struct {
	display, issuerURL     string
	clientID, clientSecret string
	life                   context.Context //nolint:containedctx // the library fetches keys under it, beyond any call
	client                 *http.Client
	clock                  clock.Clock
	log                    *slog.Logger

	mu         sync.Mutex
	discovered *discovered
	readAt     time.Time
	failedAt   time.Time
	// attempt ends with the attempt to read the configuration that is under way; nil: none is.
	attempt chan struct{}
}

// discovered is a provider's configuration.
type discovered struct {
	provider *oidc.Provider
	keys     oidc.KeySet
	// authStyle is how we log in at the token endpoint.
	authStyle  oauth2.AuthStyle
	algorithms []string
}

func (p *oidcProvider) displayName() string { return p.display }
func (p *oidcProvider) issuer() string      { return p.issuerURL }

// discover returns the configuration. An old one is read anew beside the call, and serves on while the provider is
// away. Without any, callers wait for one attempt together, each as long as it may; a provider that did not answer is
// then left alone for a while.
func (p *oidcProvider) discover(ctx context.Context) (*discovered, error) {
	known, attempt := p.known()
	if known != nil {
		return known, nil
	}
	if attempt != nil {
		select {
		case <-attempt:
		case <-ctx.Done():
			return nil, errProviderAway
		}
		known, _ = p.known()
	}
	if known == nil {
		return nil, errProviderAway
	}
	return known, nil
}

// known is the configuration, if there is one, and the attempt to read it that is under way, if there has to be one.
func (p *oidcProvider) known() (*discovered, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock.Now()
	fresh := p.discovered != nil && now.Sub(p.readAt) < discoveryAge
	paused := !p.failedAt.IsZero() && now.Sub(p.failedAt) < discoveryPause
	if p.attempt == nil && !fresh && !paused {
		p.attempt = make(chan struct{})
		go p.refresh(p.attempt)
	}
	return p.discovered, p.attempt
}

// refresh is one attempt. It belongs to no caller: who leaves shall not make the provider look as if it were away.
func (p *oidcProvider) refresh(attempt chan struct{}) {
	defer close(attempt)
	d, err := p.read(p.life)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempt = nil
	if err != nil {
		// The pause counts from now: the attempt itself may have taken longer.
		p.failedAt = p.clock.Now()
		p.log.WarnContext(p.life, "a provider's configuration cannot be read", "error", err)
		return
	}
	p.discovered, p.readAt, p.failedAt = d, p.clock.Now(), time.Time{}
}

func (p *oidcProvider) read(ctx context.Context) (*discovered, error) {
	// The client's timeout bounds this request, and those of the set of keys, which outlives it.
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.issuerURL)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	var claims struct {
		JWKSURL    string   `json:"jwks_uri"`
		Methods    []string `json:"token_endpoint_auth_methods_supported"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&claims); err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if claims.JWKSURL == "" || provider.Endpoint().AuthURL == "" || provider.Endpoint().TokenURL == "" {
		return nil, errors.New("the configuration lacks an endpoint")
	}
	d := &discovered{
		provider:  provider,
		keys:      oidc.NewRemoteKeySet(oidc.ClientContext(ctx, p.client), claims.JWKSURL),
		authStyle: oauth2.AuthStyleInHeader, algorithms: asymmetric(claims.Algorithms),
	}
	// Basic is the default where nothing is said (OpenID Connect Discovery, 3).
	if p.clientSecret == "" || (len(claims.Methods) > 0 && !slices.Contains(claims.Methods, "client_secret_basic")) {
		d.authStyle = oauth2.AuthStyleInParams
	}
	return d, nil
}

// asymmetric keeps the algorithms that need the provider's private key; RS256, which all have, when none is left.
// With the others, whoever knows the client's secret could sign.
func asymmetric(offered []string) []string {
	var kept []string
	for _, alg := range offered {
		switch alg {
		case oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA:
			kept = append(kept, alg)
		}
	}
	if len(kept) == 0 {
		return []string{oidc.RS256}
	}
	return kept
}

func (p *oidcProvider) config(d *discovered, l legs) *oauth2.Config {
	endpoint := d.provider.Endpoint()
	endpoint.AuthStyle = d.authStyle
	return &oauth2.Config{
		ClientID: p.clientID, ClientSecret: p.clientSecret, Endpoint: endpoint, RedirectURL: l.redirectURI,
		Scopes: []string{oidc.ScopeOpenID, "email", "profile"},
	}
}

func (p *oidcProvider) authorizationURL(ctx context.Context, l legs) (string, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return "", err
	}
	return p.config(d, l).AuthCodeURL(l.state, oidc.Nonce(l.nonce), oauth2.S256ChallengeOption(l.verifier)), nil
}

// idClaims are the claims of an ID token that we use.
type idClaims struct {
	Email         string `json:"email"`
	EmailVerified truth  `json:"email_verified"`
	Name          string `json:"name"`
	// AuthorizedParty is who asked for the token, when it has several audiences.
	AuthorizedParty string `json:"azp"`
}

// truth is a bool that some providers write as a string.
type truth bool

// UnmarshalJSON implements json.Unmarshaler. What is not true is false.
func (t *truth) UnmarshalJSON(raw []byte) error {
	*t = truth(strings.Trim(string(raw), `"`) == "true")
	return nil
}

func (p *oidcProvider) person(ctx context.Context, code string, l legs) (person, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return person{}, err
	}
	tok, err := redeem(ctx, p.client, p.log, p.config(d, l), code, l)
	if err != nil {
		return person{}, err
	}
	raw, _ := tok.Extra("id_token").(string)
	id, claims, err := p.verify(ctx, d, raw, l)
	if err != nil {
		return person{}, err
	}
	who := person{issuer: p.issuerURL, subject: id.Subject, email: claims.Email, emailVerified: bool(claims.EmailVerified), name: claims.Name}
	if who.email == "" && d.provider.UserInfoEndpoint() != "" {
		if err := p.ask(ctx, d, tok, &who); err != nil {
			return person{}, err
		}
	}
	who, err = who.tidy()
	if err != nil {
		p.log.WarnContext(ctx, "a provider's answer is refused", "error", err)
		return person{}, errOAuthRefused
	}
	return who, nil
}

// verify checks an ID token: signature, issuer, audience, time, nonce, authorized party.
func (p *oidcProvider) verify(ctx context.Context, d *discovered, raw string, l legs) (*oidc.IDToken, idClaims, error) {
	var claims idClaims
	keys := &heardKeySet{KeySet: d.keys}
	verifier := oidc.NewVerifier(p.issuerURL, keys, &oidc.Config{
		ClientID: p.clientID, SupportedSigningAlgs: d.algorithms, Now: p.clock.Now,
	})
	id, err := verifier.Verify(ctx, raw)
	if err == nil && id.Nonce != l.nonce {
		err = errors.New("the ID token is for another flow")
	}
	if err == nil {
		err = id.Claims(&claims)
	}
	if err == nil && len(id.Audience) > 1 && claims.AuthorizedParty != p.clientID {
		err = errors.New("the ID token was made for somebody else")
	}
	if err == nil {
		return id, claims, nil
	}
	p.log.WarnContext(ctx, "an ID token is refused", "error", err)
	if keys.away {
		return nil, claims, errProviderAway
	}
	return nil, claims, errOAuthRefused
}

// heardKeySet remembers that the keys could not be fetched, which the library's error does not tell from a wrong
// signature.
type heardKeySet struct {
	oidc.KeySet

	away bool
}

// VerifySignature implements oidc.KeySet.
func (k *heardKeySet) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := k.KeySet.VerifySignature(ctx, jwt)
	if err != nil {
		_, unreachable := errors.AsType[*url.Error](err)
		k.away = unreachable || strings.Contains(err.Error(), "fetching keys")
	}
	return payload, err
}

// ask completes a person from the userinfo endpoint, which has to speak of the same subject.
func (p *oidcProvider) ask(ctx context.Context, d *discovered, tok *oauth2.Token, who *person) error {
	info, err := d.provider.UserInfo(oidc.ClientContext(ctx, p.client), oauth2.StaticTokenSource(tok))
	if err != nil {
		p.log.WarnContext(ctx, "a provider does not tell about a person", "error", err)
		return errProviderAway
	}
	if info.Subject != who.subject {
		p.log.WarnContext(ctx, "a provider tells about somebody else")
		return errOAuthRefused
	}
	var claims idClaims
	if err := info.Claims(&claims); err != nil {
		p.log.WarnContext(ctx, "a provider's answer about a person cannot be read", "error", err)
		return errOAuthRefused
	}
	who.email, who.emailVerified = info.Email, info.EmailVerified
	if who.name == "" {
		who.name = claims.Name
	}
	return nil
}
