package token

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/clock"
)

const (
	// ServiceTokenLife is the longest life of a service token that is accepted.
	ServiceTokenLife = time.Minute
	// serviceTokenReuse is how long the caller hands out the same token: signing
	// costs 20 µs, and a reused token is remembered by the callee.
	serviceTokenReuse = 30 * time.Second
)

// ServiceSigner makes the tokens by which one service calls others. It is safe
// for concurrent use.
type ServiceSigner struct {
	name  string
	key   ed25519.PrivateKey
	clock clock.Clock

	mu     sync.Mutex
	tokens map[string]signedToken // by audience; as many as there are callees
}

type signedToken struct {
	raw string
	at  time.Time
}

// NewServiceSigner signs for the service of that name. It fails for a key of the
// wrong size or an empty name.
func NewServiceSigner(name string, key ed25519.PrivateKey, clk clock.Clock) (*ServiceSigner, error) {
	if name == "" {
		return nil, errors.New("service signer: no name")
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("service signer: private key has %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	return &ServiceSigner{name: name, key: key, clock: clk, tokens: make(map[string]signedToken)}, nil
}

// Name is the name that the tokens carry.
func (s *ServiceSigner) Name() string { return s.name }

// Token returns a token for calls to the service audience, good for at least
// another half minute.
func (s *ServiceSigner) Token(audience string) (string, error) {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	// A clock that jumped back must not hand out a token of the future.
	if t, ok := s.tokens[audience]; ok && !now.Before(t.at) && now.Sub(t.at) < serviceTokenReuse {
		return t.raw, nil
	}
	raw, err := sign(TypeService, "", s.key, payload{
		Issuer: s.name, Audience: audience,
		IssuedAt: now.Unix(), Expires: now.Unix() + int64(ServiceTokenLife/time.Second), ID: uuid.NewString(),
	})
	if err != nil {
		return "", fmt.Errorf("sign service token: %w", err)
	}
	s.tokens[audience] = signedToken{raw: raw, at: now}
	return raw, nil
}

// ServiceVerifier checks the tokens of services that call this one. It is safe
// for concurrent use.
type ServiceVerifier struct {
	self    string
	callers map[string]ed25519.PublicKey
	clock   clock.Clock
	seen    *remembered[string]
}

// NewServiceVerifier checks tokens whose audience is self, from the callers
// whose keys are given by name. The map is not copied and must not change.
func NewServiceVerifier(self string, callers map[string]ed25519.PublicKey, clk clock.Clock) *ServiceVerifier {
	return &ServiceVerifier{self: self, callers: callers, clock: clk, seen: newRemembered[string](shards * 16)}
}

// Verify returns the name of the calling service, or an error that wraps
// ErrInvalid or ErrExpired.
func (v *ServiceVerifier) Verify(raw string) (string, error) {
	if len(raw) > maxSize {
		return "", fmt.Errorf("%w: bad size", ErrInvalid)
	}
	now := v.clock.Now()
	sum := digest(raw)
	if caller, ok := v.seen.get(sum, now); ok {
		return caller, nil
	}
	u, err := parse(raw, TypeService, nil)
	if err != nil {
		return "", err
	}
	// The issuer chooses the key, and only the key of that very issuer is tried:
	// a service can speak for itself alone.
	issuer, err := unverifiedIssuer(u.body)
	if err != nil {
		return "", err
	}
	key, ok := v.callers[issuer]
	if !ok {
		return "", fmt.Errorf("%w: unknown service", ErrInvalid)
	}
	p, err := check(u, key, v.self, now)
	if err != nil {
		return "", err
	}
	if p.Expires-p.IssuedAt > int64(ServiceTokenLife/time.Second) {
		return "", fmt.Errorf("%w: lives too long", ErrInvalid)
	}
	v.seen.put(v.seen.generation(), sum, issuer, time.Unix(p.Expires, 0), now)
	return issuer, nil
}

// unverifiedIssuer reads who claims to have signed.
func unverifiedIssuer(body []byte) (string, error) {
	var p payload
	if err := json.Unmarshal(body, &p); err != nil {
		return "", fmt.Errorf("%w: claims cannot be read", ErrInvalid)
	}
	return p.Issuer, nil
}
