// Package auth owns accounts, passwords, sessions and the keys that sign access tokens.
//
// Invariants: an e-mail address and a user name belong to one account each, without regard to case; a
// refresh token is spent once, its immediate predecessor excepted for ten seconds; a session that has ended
// never comes back; every access token is signed by a key that the key set showed before and shows until the
// token has expired. An account and its event, a revocation and its event, an action and its entry in the record
// commit together. No session outlives the password, the role or the standing that it was begun with.
//
// It stores no password, no refresh token, no code and no unsealed key, and it never says whether an account
// exists, except to somebody who tries to register its name or, a few times, its address. It never tells that an
// account is suspended or has a second factor before its password was right.
package auth

import (
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
)

var (
	_ authv1connect.AuthServiceHandler         = (*Service)(nil)
	_ authv1connect.SessionServiceHandler      = (*Service)(nil)
	_ authv1connect.AccountServiceHandler      = (*Service)(nil)
	_ authv1connect.SecondFactorServiceHandler = (*Service)(nil)
	_ authv1connect.AdminServiceHandler        = (*Service)(nil)
	_ authv1connect.UsernameServiceHandler     = (*Service)(nil)
	_ authv1connect.ConfirmationServiceHandler = (*Service)(nil)
	_ authv1connect.PortabilityServiceHandler  = (*Service)(nil)
)

// Service implements the services of parley.auth.v1 that the lines above name.
type Service struct {
	pool   *pgxpool.Pool
	outbox *outbox.Outbox
	bus    *event.Bus
	clock  clock.Clock
	log    *slog.Logger

	passwords *passwords
	refresh   refreshSealer
	keys      *keyring
	attempts  *attempts
	mails     *mail.Queue
	mailer    mailer
	oauth     *oauth
	secrets   secretHasher
	factors   factorSealer

	policy            sessionPolicy
	issuer, audience  string
	registerAwait     []string
	gateways          []netip.Prefix
	loginLimit        int
	loginAddressLimit int
	registerLimit     int
	actionLimit       int
	refreshLimit      int

	codeSendLimit        int
	codeSendAddressLimit int
	usernames            usernamePolicy
	sessionsPerAccount   int32
	auditRetention       time.Duration
	// factorIssuer is what authenticator apps call this deployment.
	factorIssuer string
}

// jwksMaxAge is how long a key set may be kept: far below the time by which keys are announced.
const jwksMaxAge = "300"

// keySet serves the public keys as RFC 7517 describes: those that sign, those that will, and those whose
// tokens may still be about.
func (s *Service) keySet(w http.ResponseWriter, r *http.Request) {
	body, err := s.keys.publicSet(r.Context())
	if err != nil {
		s.log.ErrorContext(r.Context(), "the key set cannot be served", "error", err)
		http.Error(w, "the key set is unavailable", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age="+jwksMaxAge)
	if _, err := w.Write(body); err != nil {
		s.log.DebugContext(r.Context(), "the reader of the key set went away", "error", err)
	}
}
