// Package token makes and checks the two kinds of token that Parley trusts.
//
// An access token stands for a person's session: an Ed25519-signed JWT (RFC
// 9068, typ "at+jwt") made by auth, checked by the gateway and by every
// service. A service token stands for a service that calls another: typ
// "svc+jwt", issued by the caller for one callee, at most a minute long.
//
// Invariants: the algorithm is pinned to EdDSA and never read from the token; a
// header parameter that names or carries a key (jku, x5u, jwk, x5c) makes a
// token invalid; one kind of token is never taken for the other; a token whose
// session was revoked is refused as long as it could live.
//
// It never stores a token, logs one, or puts one into an error.
package token

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/identity"
)

// Why a token is refused. Errors of this package wrap one of them.
var (
	// ErrInvalid: malformed, badly signed, of the wrong kind or for somebody else.
	ErrInvalid = errors.New("token is invalid")
	// ErrExpired: it was good once.
	ErrExpired = errors.New("token has expired")
	// ErrRevoked: its session was ended.
	ErrRevoked = errors.New("session is revoked")
	// ErrUnavailable: the keys to judge it by cannot be had at the moment.
	ErrUnavailable = errors.New("token keys are unavailable")
)

// The values of the header "typ".
const (
	TypeAccess  = "at+jwt"
	TypeService = "svc+jwt"
)

const (
	// maxSize bounds what is parsed at all, in bytes. Ours have about 500.
	maxSize = 4096
	// skew is how far the clock of the machine that signed may run ahead of
	// ours. Expiry gets no such grace: it is what ends a stolen token.
	skew = time.Minute
)

// Claims is what an access token says.
type Claims struct {
	UserID    uuid.UUID
	SessionID uuid.UUID
	Role      identity.Role
	// Whole seconds, as in the token.
	IssuedAt  time.Time
	ExpiresAt time.Time
}

// Caller is the person that the claims speak of.
func (c Claims) Caller() identity.Caller {
	return identity.Caller{Kind: identity.User, UserID: c.UserID, SessionID: c.SessionID, Role: c.Role}
}

// SigningKey signs access tokens. ID is the key id that the token carries; see
// KeyID for the usual one.
type SigningKey struct {
	ID      string
	Private ed25519.PrivateKey
}

// payload is the wire form of both kinds; a service token has no Session, Role
// or Subject.
type payload struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub,omitempty"`
	Session  string `json:"sid,omitempty"`
	Role     string `json:"role,omitempty"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
}

// SignAccess makes an access token. Times are cut to whole seconds. It fails for
// a key of the wrong size, a missing key id, role, user or session, or an expiry
// that is not after the issue.
func SignAccess(key SigningKey, c Claims, issuer, audience string) (string, error) {
	switch {
	case key.ID == "":
		return "", errors.New("sign access token: key has no id")
	case c.Role.String() == "":
		return "", errors.New("sign access token: no role")
	case c.UserID == uuid.Nil || c.SessionID == uuid.Nil:
		return "", errors.New("sign access token: no user or session")
	case c.ExpiresAt.Unix() <= c.IssuedAt.Unix():
		return "", errors.New("sign access token: expires before it is issued")
	}
	raw, err := sign(TypeAccess, key.ID, key.Private, payload{
		Issuer: issuer, Audience: audience, Subject: c.UserID.String(), Session: c.SessionID.String(),
		Role: c.Role.String(), IssuedAt: c.IssuedAt.Unix(), Expires: c.ExpiresAt.Unix(), ID: uuid.NewString(),
	})
	if err != nil {
		return "", fmt.Errorf("sign access token: %w", err)
	}
	return raw, nil
}

func sign(typ, kid string, key ed25519.PrivateKey, p payload) (string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", fmt.Errorf("private key has %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(typ))
	var signingKey any = key
	if kid != "" {
		signingKey = jose.JSONWebKey{Key: key, KeyID: kid}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: signingKey}, opts)
	if err != nil {
		return "", fmt.Errorf("make signer: %w", err)
	}
	body, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	signed, err := signer.Sign(body)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("serialize: %w", err)
	}
	return raw, nil
}

// unverified is a token that was read and is not believed: header and spelling
// are as they should be, nothing is said of the signature.
type unverified struct {
	kid       string
	signed    string // what the signature is for: header and body, as they came
	body      []byte
	signature []byte
}

// parse reads a token of that kind. known may be nil.
func parse(raw, typ string, known *headers) (unverified, error) {
	if len(raw) == 0 || len(raw) > maxSize {
		return unverified{}, fmt.Errorf("%w: bad size", ErrInvalid)
	}
	header, rest, _ := strings.Cut(raw, ".")
	body, signature, _ := strings.Cut(rest, ".")
	u := unverified{signed: raw[:len(raw)-len(signature)-1]}
	var err error
	if u.body, err = decode(body); err != nil {
		return unverified{}, err
	}
	if u.signature, err = decode(signature); err != nil {
		return unverified{}, err
	}
	kid, ok := known.kid(header)
	if !ok {
		if kid, err = judgeHeader(raw, header, typ); err != nil {
			return unverified{}, err
		}
	}
	u.kid = kid
	return u, nil
}

// decode reads a segment that is spelled as its signer spelled it: no white space,
// which the decoder would skip, and no bits in the last letter that say nothing.
// Otherwise one token would have many spellings.
func decode(segment string) ([]byte, error) {
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(segment)
	if err != nil || strings.ContainsAny(segment, "\r\n") {
		return nil, fmt.Errorf("%w: not in its one spelling", ErrInvalid)
	}
	return decoded, nil
}

// judgeHeader gives the key id of a token of that kind, whatever its first segment
// says besides.
func judgeHeader(raw, header, typ string) (string, error) {
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		// The parser's error may quote the token, so it is not wrapped.
		return "", fmt.Errorf("%w: cannot be parsed", ErrInvalid)
	}
	if len(jws.Signatures) != 1 {
		return "", fmt.Errorf("%w: not signed once", ErrInvalid)
	}
	read := jws.Signatures[0].Header
	if got, _ := read.ExtraHeaders[jose.HeaderType].(string); got != typ {
		return "", fmt.Errorf("%w: wrong kind of token", ErrInvalid)
	}
	if err := onlyKnownHeaders(header); err != nil {
		return "", err
	}
	return read.KeyID, nil
}

// onlyKnownHeaders refuses every header parameter that we do not write
// ourselves, first of all those that point to a key (jku, x5u, jwk, x5c) and
// crit. The library hides some of them, so the segment is read again.
func onlyKnownHeaders(segment string) error {
	decoded, err := decode(segment)
	if err != nil {
		return err
	}
	var header map[string]json.RawMessage
	if err := json.Unmarshal(decoded, &header); err != nil {
		return fmt.Errorf("%w: cannot be parsed", ErrInvalid)
	}
	for name := range header {
		if !slices.Contains([]string{"alg", "kid", "typ"}, name) {
			return fmt.Errorf("%w: header parameter not allowed", ErrInvalid)
		}
	}
	return nil
}

// check verifies the signature and everything that both kinds of token have in
// common. The claims are complete even with ErrExpired.
func check(u unverified, key ed25519.PublicKey, audience string, now time.Time) (payload, error) {
	var p payload
	if len(key) != ed25519.PublicKeySize {
		return p, fmt.Errorf("%w: unusable key", ErrInvalid)
	}
	if !ed25519.Verify(key, []byte(u.signed), u.signature) {
		return p, fmt.Errorf("%w: bad signature", ErrInvalid)
	}
	if err := json.Unmarshal(u.body, &p); err != nil {
		return p, fmt.Errorf("%w: claims cannot be read", ErrInvalid)
	}
	switch {
	case p.Audience != audience:
		return p, fmt.Errorf("%w: for another audience", ErrInvalid)
	case p.IssuedAt <= 0 || p.Expires <= p.IssuedAt:
		return p, fmt.Errorf("%w: no lifetime", ErrInvalid)
	case time.Unix(p.IssuedAt, 0).After(now.Add(skew)):
		return p, fmt.Errorf("%w: issued in the future", ErrInvalid)
	case !now.Before(time.Unix(p.Expires, 0)):
		return p, ErrExpired
	}
	return p, nil
}

// TypeOf guesses the kind of a token from its unverified header, to choose the
// verifier that then checks it strictly. Empty if it is neither.
func TypeOf(raw string) string {
	segment, _, found := strings.Cut(raw, ".")
	if !found || len(raw) > maxSize {
		return ""
	}
	decoded, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil {
		return ""
	}
	switch header := string(decoded); {
	case strings.Contains(header, `"`+TypeService+`"`):
		return TypeService
	case strings.Contains(header, `"`+TypeAccess+`"`):
		return TypeAccess
	default:
		return ""
	}
}

// KeyID is the usual id of a public key: the start of the base64url SHA-256 of
// its bytes. The same key gets the same id on every machine.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}
