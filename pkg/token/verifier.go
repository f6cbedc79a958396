package token

import (
	"context"
	"crypto/ed25519"
	"fmt"
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
	jws, kid, err := parse(raw, TypeAccess)
	if err != nil {
		return Claims{}, err
	}
	if kid == "" {
		return Claims{}, fmt.Errorf("%w: no key id", ErrInvalid)
	}
	key, err := v.keys.Key(ctx, kid)
	if err != nil {
		return Claims{}, fmt.Errorf("find key of token: %w", err)
	}
	p, err := check(jws, key, v.audience, now)
	if err != nil {
		return Claims{}, err
	}
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
