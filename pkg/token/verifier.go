package token

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
)

// KeySource finds the public key of a key id. It returns an error that wraps
// ErrInvalid if there is no such key, ErrUnavailable if that cannot be said now.
type KeySource interface {
	Key(ctx context.Context, kid string) (ed25519.PublicKey, error)
}

// withdrawer is a KeySource that tells when a key is no longer good.
type withdrawer interface {
	onWithdrawn(fn func())
}

// Verifier checks access tokens. It is safe for concurrent use.
type Verifier struct {
	keys     KeySource
	revoked  *Revocations
	clock    clock.Clock
	issuer   string
	audience string
	seen     *remembered[Claims]
	headers  headers
}

// maxHeaders is more keys than an issuer has at once.
const maxHeaders = 64

// headers are the first segments of tokens that were good, with the key id that
// they name: all tokens of one key begin alike, and to read that again took as long
// as a third of the signature. Only who has a signing key can add to them. The
// zero value is ready; nil knows none.
type headers struct {
	mu   sync.RWMutex
	kids map[string]string
}

func (h *headers) kid(segment string) (string, bool) {
	if h == nil {
		return "", false
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	kid, ok := h.kids[segment]
	return kid, ok
}

// remember keeps the header of a token whose signature was good.
func (h *headers) remember(u unverified) {
	segment, _, _ := strings.Cut(u.signed, ".")
	if _, known := h.kid(segment); known {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kids == nil || len(h.kids) >= maxHeaders {
		h.kids = make(map[string]string)
	}
	h.kids[strings.Clone(segment)] = u.kid
}

// NewVerifier makes a verifier of the tokens of one issuer for one audience.
// revoked may be nil only where no session can be revoked (tests of other
// things); otherwise a token that lives longer than revocations are remembered
// is refused, for it could outlive its revocation.
func NewVerifier(keys KeySource, revoked *Revocations, clk clock.Clock, issuer, audience string) *Verifier {
	v := &Verifier{
		keys: keys, revoked: revoked, clock: clk, issuer: issuer, audience: audience,
		seen: newRemembered[Claims](DefaultRemembered),
	}
	if w, ok := keys.(withdrawer); ok {
		w.onWithdrawn(v.seen.forget)
	}
	return v
}

// Verify says what a token claims, or an error that wraps ErrInvalid,
// ErrExpired, ErrRevoked or ErrUnavailable. A token seen before costs one
// SHA-256 and two lookups.
func (v *Verifier) Verify(ctx context.Context, raw string) (Claims, error) {
	if len(raw) > maxSize {
		return Claims{}, fmt.Errorf("%w: bad size", ErrInvalid)
	}
	now := v.clock.Now()
	sum := digest(raw)
	claims, ok := v.seen.get(sum, now)
	if !ok {
		generation := v.seen.generation()
		var err error
		if claims, err = v.verify(ctx, raw, now); err != nil {
			return Claims{}, err
		}
		v.seen.put(generation, sum, claims, claims.ExpiresAt, now)
	}
	// Asked every time: a revocation may be younger than the memory.
	if v.revoked != nil && v.revoked.Revoked(claims.SessionID) {
		return Claims{}, ErrRevoked
	}
	return claims, nil
}

func (v *Verifier) verify(ctx context.Context, raw string, now time.Time) (Claims, error) {
	u, err := parse(raw, TypeAccess, &v.headers)
	if err != nil {
		return Claims{}, err
	}
	if u.kid == "" {
		return Claims{}, fmt.Errorf("%w: no key id", ErrInvalid)
	}
	key, err := v.keys.Key(ctx, u.kid)
	if err != nil {
		return Claims{}, fmt.Errorf("find key of token: %w", err)
	}
	p, err := check(u, key, v.audience, now)
	if err != nil {
		return Claims{}, err
	}
	v.headers.remember(u)
	return v.claims(p)
}

func (v *Verifier) claims(p payload) (Claims, error) {
	if p.Issuer != v.issuer {
		return Claims{}, fmt.Errorf("%w: from another issuer", ErrInvalid)
	}
	user, err := uuid.Parse(p.Subject)
	if err != nil || user == uuid.Nil {
		return Claims{}, fmt.Errorf("%w: no subject", ErrInvalid)
	}
	session, err := uuid.Parse(p.Session)
	if err != nil || session == uuid.Nil {
		return Claims{}, fmt.Errorf("%w: no session", ErrInvalid)
	}
	role, err := identity.ParseRole(p.Role)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: no role", ErrInvalid)
	}
	c := Claims{
		UserID: user, SessionID: session, Role: role,
		IssuedAt: time.Unix(p.IssuedAt, 0).UTC(), ExpiresAt: time.Unix(p.Expires, 0).UTC(),
	}
	if v.revoked != nil && c.ExpiresAt.Sub(c.IssuedAt) > v.revoked.life {
		return Claims{}, fmt.Errorf("%w: lives longer than revocations are remembered", ErrInvalid)
	}
	return c, nil
}
