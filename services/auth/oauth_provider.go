package auth

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/oauth2"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

var (
	errProviderUnknown = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_OAUTH_PROVIDER_UNKNOWN,
		"nobody of that name to log in with")
	errProviderAway = rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_OAUTH_PROVIDER_UNAVAILABLE,
		"the provider does not answer, begin again later")
	errOAuthRefused = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_REFUSED,
		"the provider does not confirm this log-in")
)

// person is somebody as a provider knows them. Issuer and subject are who it is; the rest is what they say.
type person struct {
	issuer, subject string
	email           string
	emailVerified   bool
	name            string
}

// legs are what both ways of a flow have to agree on.
type legs struct {
	state, redirectURI string
	// nonce comes back in the ID token; verifier is that of PKCE between us and the provider.
	nonce, verifier string
}

// provider is somebody to log in with. Errors of its methods are errOAuthRefused or errProviderAway, which wrap
// nothing; the cause is logged.
type provider interface {
	displayName() string
	// issuer is whose subjects its people are.
	issuer() string
	authorizationURL(ctx context.Context, l legs) (string, error)
	// person redeems a code.
	person(ctx context.Context, code string, l legs) (person, error)
}

// oauth is all that the service knows of providers.
type oauth struct {
	settings  oauthSettings
	providers map[string]provider
	client    *http.Client
	// key is what nonce and verifier of a flow are derived with.
	key []byte
}

// newOAuth takes a ctx that lives as long as the service: keys are fetched under it.
func newOAuth(ctx context.Context, s oauthSettings, keyEncryptionKey []byte, clk clock.Clock, log *slog.Logger) (*oauth, error) {
	key, err := hkdf.Key(sha256.New, keyEncryptionKey, nil, "parley oauth flows", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the key of oauth flows: %w", err)
	}
	o := &oauth{settings: s, providers: map[string]provider{}, client: newProviderClient(s.Timeout, s.AllowPrivate), key: key}
	withOIDC := func(name, display, issuer, id, secret string) {
		o.providers[name] = &oidcProvider{
			display: display, issuerURL: issuer, clientID: id, clientSecret: secret,
			life: ctx, client: o.client, clock: clk, log: log.With("provider", name),
		}
	}
	if s.Google.ClientID != "" {
		withOIDC(googleName, "Google", s.Google.Issuer, s.Google.ClientID, s.Google.ClientSecret)
	}
	if s.Facebook.ClientID != "" {
		o.providers[facebookName] = &facebookProvider{
			clientID: s.Facebook.ClientID, clientSecret: s.Facebook.ClientSecret,
			dialogURL: s.Facebook.DialogURL, graphURL: strings.TrimSuffix(s.Facebook.GraphURL, "/"),
			client: o.client, log: log.With("provider", facebookName),
		}
	}
	for name, issuer := range s.Issuers {
		withOIDC(name, cmp.Or(s.DisplayNames[name], name), issuer, s.ClientIDs[name], s.ClientSecrets[name])
	}
	return o, nil
}

// names lists the providers in a fixed order.
func (o *oauth) names() []string { return slices.Sorted(maps.Keys(o.providers)) }

// issuers are those with which somebody can log in today.
func (o *oauth) issuers() []string {
	issuers := make([]string, 0, len(o.providers))
	for _, name := range o.names() {
		issuers = append(issuers, o.providers[name].issuer())
	}
	return issuers
}

// legs derives what a flow's two ways share from its state, so that none of it is kept: whoever reads the
// database has nothing to redeem a code with.
func (o *oauth) legs(state, redirectURI string) legs {
	derive := func(purpose string) string {
		mac := hmac.New(sha256.New, o.key)
		mac.Write([]byte(purpose + ":" + state))
		return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	return legs{state: state, redirectURI: redirectURI, nonce: derive("nonce"), verifier: derive("pkce")}
}

// redeem trades a code for the provider's tokens.
func redeem(ctx context.Context, client *http.Client, log *slog.Logger, cfg *oauth2.Config, code string, l legs) (*oauth2.Token, error) {
	tok, err := cfg.Exchange(context.WithValue(ctx, oauth2.HTTPClient, client), code, oauth2.VerifierOption(l.verifier))
	if err == nil {
		return tok, nil
	}
	answer, answered := errors.AsType[*oauth2.RetrieveError](err)
	if !answered || answer.Response == nil || answer.Response.StatusCode >= http.StatusInternalServerError ||
		answer.Response.StatusCode == http.StatusTooManyRequests {
		log.WarnContext(ctx, "a provider does not redeem a code", "error", unspoken(err))
		return nil, errProviderAway
	}
	if answer.ErrorCode == "invalid_client" || answer.ErrorCode == "unauthorized_client" {
		log.ErrorContext(ctx, "a provider does not know us: is the client secret right?", "error", answer.ErrorCode)
		return nil, errProviderAway
	}
	log.InfoContext(ctx, "a provider refuses a code", "status", answer.Response.StatusCode, "error", answer.ErrorCode)
	return nil, errOAuthRefused
}

// unspoken is an error without the body of an answer in it, which may hold anything.
func unspoken(err error) error {
	if answer, ok := errors.AsType[*oauth2.RetrieveError](err); ok && answer.Response != nil {
		return fmt.Errorf("answer %d", answer.Response.StatusCode)
	}
	return err
}

const (
	maxSubject = 255
	maxName    = 64
)

// tidy makes what a provider says fit for storing. A subject must be taken as it is.
func (p person) tidy() (person, error) {
	if p.subject == "" || len(p.subject) > maxSubject || printable(p.subject, maxSubject) != p.subject {
		return person{}, errors.New("the provider names no usable subject")
	}
	if !mail.Mailable(p.email) {
		p.email, p.emailVerified = "", false
	}
	p.name = strings.TrimSpace(printable(p.name, maxName))
	return p, nil
}
