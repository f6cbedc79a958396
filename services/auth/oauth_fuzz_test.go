package auth

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// answering is a provider that answers every request with the same.
type answering struct {
	status int
	body   []byte
}

// RoundTrip implements http.RoundTripper.
func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// FuzzOAuthAnswer holds that whatever a provider answers about somebody becomes
// texts that we can store, or an error, and that an address counts as confirmed
// only if the provider says just that.
func FuzzOAuthAnswer(f *testing.F) {
	for _, body := range []string{
		`{"id":"7","name":"Ada","email":"ada@example.org"}`, `{"sub":"7","email":"ada@example.org","email_verified":true,"azp":"x"}`,
		`{"email":"ada@example.org","email_verified":"true"}`, `{"email_verified":"false"}`, `{"email_verified":1}`, `{"email_verified":"\"true"}`,
		`{"id":7}`, `{"id":"a\u0000b","name":"\u202e\ud800","email":"a\r\nBcc: b@example.org"}`, `{"id":""}`, `{`, `[]`, `null`, ``, "{\"id\":\"\xff\"}",
	} {
		f.Add(uint16(http.StatusOK), []byte(body))
	}
	f.Add(uint16(http.StatusTooManyRequests), []byte(`{}`))
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		facebook := &facebookProvider{
			clientID: "c", clientSecret: "s", graphURL: "https://graph.test",
			client: &http.Client{Transport: answering{100 + int(status)%500, body}}, log: slog.New(slog.DiscardHandler),
		}
		if who, err := facebook.me(t.Context(), "t"); err == nil {
			requireTidy(t, who)
			require.False(t, who.emailVerified, "it never says so")
		}
		var claims idClaims
		if json.Unmarshal(body, &claims) != nil {
			return
		}
		if claims.EmailVerified {
			require.Contains(t, string(body), "true")
		}
		requireTidy(t, person{
			issuer: "https://issuer.test", subject: claims.AuthorizedParty, email: claims.Email,
			emailVerified: bool(claims.EmailVerified), name: claims.Name,
		})
	})
}

// requireTidy holds what is stored of a person, if it is.
func requireTidy(t *testing.T, said person) {
	t.Helper()
	who, err := said.tidy()
	if err != nil {
		return
	}
	require.Equal(t, said.subject, who.subject, "taken as it is")
	require.NotEmpty(t, who.subject)
	require.LessOrEqual(t, len(who.subject), maxSubject)
	if who.email == "" {
		require.False(t, who.emailVerified)
	}
	for _, text := range []string{who.subject, who.email, who.name} {
		require.True(t, utf8.ValidString(text))
		require.False(t, strings.ContainsAny(text, "\x00\r\n"))
	}
}
