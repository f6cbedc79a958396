package auth

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"time"
)

// oauthSettings are the variables PARLEY_AUTH_OAUTH_…: whom one can log in with. Without any of them there is
// nobody, and the API says so.
type oauthSettings struct {
	RedirectURIs []string `env:"REDIRECT_URIS" doc:"Where providers may send the browser, compared as they stand: https://chat.example.org/oauth, com.example.chat:/oauth. Needed with any provider."`

	Google struct {
		ClientID     string `env:"CLIENT_ID" doc:"The client id at Google; empty: nobody logs in with Google."`
		ClientSecret string `env:"CLIENT_SECRET" secret:"true" doc:"Its secret."`
		Issuer       string `env:"ISSUER" default:"https://accounts.google.com" doc:"Google's issuer; another one in tests."`
	} `env:"GOOGLE"`

	Facebook struct {
		ClientID     string `env:"CLIENT_ID" doc:"The app id at Facebook; empty: nobody logs in with Facebook."`
		ClientSecret string `env:"CLIENT_SECRET" secret:"true" doc:"Its secret."`
		DialogURL    string `env:"DIALOG_URL" default:"https://www.facebook.com/v23.0/dialog/oauth" doc:"Where people are sent to, with the version of the API."`
		GraphURL     string `env:"GRAPH_URL" default:"https://graph.facebook.com/v23.0" doc:"The Graph API, with its version."`
	} `env:"FACEBOOK"`

	Issuers       map[string]string `env:"OIDC_ISSUERS" doc:"OpenID Connect providers by name: keycloak=https://id.example.org/realms/main,…. Each needs a client id."`
	ClientIDs     map[string]string `env:"OIDC_CLIENT_IDS" doc:"Their client ids: keycloak=parley,…."`
	ClientSecrets map[string]string `env:"OIDC_CLIENT_SECRETS" secret:"true" doc:"Their client secrets; none for a public client."`
	DisplayNames  map[string]string `env:"OIDC_DISPLAY_NAMES" doc:"What buttons call them; the name when missing."`

	Timeout    time.Duration `env:"TIMEOUT" default:"8s" min:"1s" max:"25s" doc:"The most that a provider's answers to one call take together."`
	StartLimit int           `env:"START_LIMIT" default:"30" min:"0" max:"100000" doc:"Flows that are begun per 15 minutes and client address; 0: no limit."`
	// AllowPrivate also allows plain http, which no provider on the internet has.
	AllowPrivate bool `env:"ALLOW_PRIVATE_NETWORKS" doc:"Providers may be at private addresses and speak plain HTTP; for tests, and for an identity provider in the same network."`
}

var providerName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

const (
	googleName   = "google"
	facebookName = "facebook"
)

// faultFunc notes what is wrong with a variable.
type faultFunc func(variable, format string, args ...any)

// check tells what the tags cannot.
func (s oauthSettings) check() error {
	var faults []error
	fault := func(variable, format string, args ...any) {
		faults = append(faults, fmt.Errorf("PARLEY_AUTH_OAUTH_%s: %s", variable, fmt.Sprintf(format, args...)))
	}
	s.checkIssuers(fault)
	if (s.Google.ClientID == "") != (s.Google.ClientSecret == "") {
		fault("GOOGLE_CLIENT_SECRET", "id and secret belong together")
	}
	if (s.Facebook.ClientID == "") != (s.Facebook.ClientSecret == "") {
		fault("FACEBOOK_CLIENT_SECRET", "id and secret belong together")
	}
	if s.Google.ClientID != "" {
		s.checkURL(fault, "GOOGLE_ISSUER", s.Google.Issuer)
	}
	if s.Facebook.ClientID != "" {
		s.checkURL(fault, "FACEBOOK_DIALOG_URL", s.Facebook.DialogURL)
		s.checkURL(fault, "FACEBOOK_GRAPH_URL", s.Facebook.GraphURL)
	}
	if s.enabled() && len(s.RedirectURIs) == 0 {
		fault("REDIRECT_URIS", "missing; it has to be set with a provider")
	}
	for _, uri := range s.RedirectURIs {
		if !redirectAllowed(uri) {
			fault("REDIRECT_URIS", "%q has to be absolute, without a fragment, and https unless it leads to this device", uri)
		}
	}
	return errors.Join(faults...)
}

// checkIssuers looks at the providers by name.
func (s oauthSettings) checkIssuers(fault faultFunc) {
	for name, issuer := range s.Issuers {
		switch {
		case !providerName.MatchString(name) || name == googleName || name == facebookName:
			fault("OIDC_ISSUERS", "%q is no name of a provider", name)
		case s.ClientIDs[name] == "":
			fault("OIDC_CLIENT_IDS", "%s is missing", name)
		}
		s.checkURL(fault, "OIDC_ISSUERS", issuer)
	}
	for variable, entries := range map[string]map[string]string{
		"OIDC_CLIENT_IDS": s.ClientIDs, "OIDC_CLIENT_SECRETS": s.ClientSecrets, "OIDC_DISPLAY_NAMES": s.DisplayNames,
	} {
		for name := range entries {
			if s.Issuers[name] == "" {
				fault(variable, "%s has no issuer", name)
			}
		}
	}
}

func (s oauthSettings) enabled() bool {
	return s.Google.ClientID != "" || s.Facebook.ClientID != "" || len(s.Issuers) > 0
}

func (s oauthSettings) checkURL(fault faultFunc, variable, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || (u.Scheme != "https" && (u.Scheme != "http" || !s.AllowPrivate)) {
		fault(variable, "%q is no https URL", text)
	}
}

// redirectAllowed says whether a URI may be on the list: https, an app's own scheme (RFC 8252, 7.1: with a dot), or
// the device itself.
func redirectAllowed(text string) bool {
	u, err := url.Parse(text)
	if err != nil || !u.IsAbs() || u.Fragment != "" || u.User != nil {
		return false
	}
	switch u.Scheme {
	case "https":
		return u.Host != ""
	case "http":
		host := u.Hostname()
		ip := net.ParseIP(host)
		return host == "localhost" || (ip != nil && ip.IsLoopback())
	default:
		return slices.Contains([]byte(u.Scheme), '.')
	}
}
