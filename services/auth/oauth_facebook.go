package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"

	"golang.org/x/oauth2"
)

// facebookIssuer stands for Facebook among the issuers. Its ids are those of our app.
const facebookIssuer = "https://www.facebook.com"

// facebookProvider is Facebook Login: OAuth 2.0 and the Graph API, which is asked who the token is of.
type facebookProvider struct {
	clientID, clientSecret string
	dialogURL, graphURL    string
	client                 *http.Client
	log                    *slog.Logger
}

func (p *facebookProvider) displayName() string { return "Facebook" }

// issuer tells apps apart: ids are scoped to them.
func (p *facebookProvider) issuer() string { return facebookIssuer + "/" + p.clientID }

func (p *facebookProvider) config(l legs) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.clientID, ClientSecret: p.clientSecret, RedirectURL: l.redirectURI, Scopes: []string{"public_profile", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: p.dialogURL, TokenURL: p.graphURL + "/oauth/access_token", AuthStyle: oauth2.AuthStyleInParams},
	}
}

func (p *facebookProvider) authorizationURL(_ context.Context, l legs) (string, error) {
	return p.config(l).AuthCodeURL(l.state, oauth2.S256ChallengeOption(l.verifier)), nil
}

func (p *facebookProvider) person(ctx context.Context, code string, l legs) (person, error) {
	tok, err := redeem(ctx, p.client, p.log, p.config(l), code, l)
	if err != nil {
		return person{}, err
	}
	who, err := p.me(ctx, tok.AccessToken)
	if err != nil {
		return person{}, err
	}
	who, err = who.tidy()
	if err != nil {
		p.log.WarnContext(ctx, "a provider's answer is refused", "error", err)
		return person{}, errOAuthRefused
	}
	return who, nil
}

// me asks whose the token is. It came from Facebook for our secret a moment ago, so it is for our app; the proof
// makes it of no use to anybody who reads it on the way. Facebook does not say whether an address is confirmed.
func (p *facebookProvider) me(ctx context.Context, token string) (person, error) {
	proof := hmac.New(sha256.New, []byte(p.clientSecret))
	proof.Write([]byte(token))
	query := url.Values{"fields": {"id,name,email"}, "appsecret_proof": {hex.EncodeToString(proof.Sum(nil))}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.graphURL+"/me?"+query.Encode(), http.NoBody)
	if err != nil {
		return person{}, fmt.Errorf("ask the Graph API: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := p.client.Do(req)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL, which holds the proof
		}
		p.log.WarnContext(ctx, "the Graph API does not answer", "error", err)
		return person{}, errProviderAway
	}
	defer res.Body.Close()
	var me struct {
		ID    string `json:"id"`
		Name  string `json:"name"`
		Email string `json:"email"`
	}
	switch {
	case res.StatusCode >= http.StatusInternalServerError || res.StatusCode == http.StatusTooManyRequests:
		p.log.WarnContext(ctx, "the Graph API fails", "status", res.StatusCode)
		return person{}, errProviderAway
	case res.StatusCode != http.StatusOK:
		p.log.WarnContext(ctx, "the Graph API refuses a token", "status", res.StatusCode)
		return person{}, errOAuthRefused
	}
	if err := json.NewDecoder(res.Body).Decode(&me); err != nil {
		p.log.WarnContext(ctx, "the answer of the Graph API cannot be read", "error", err)
		return person{}, errProviderAway
	}
	return person{issuer: p.issuer(), subject: me.ID, email: me.Email, name: me.Name}, nil
}
