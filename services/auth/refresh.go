package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"github.com/google/uuid"
)

// refreshPrefix makes the tokens easy to find for secret scanners.
const refreshPrefix = "prt_"

// refreshGrace is how long the immediate predecessor of an unused token gives that same token again: long
// enough for a lost answer or two tabs, short enough that a stolen token is found out.
const refreshGrace = 10 * time.Second

const (
	refreshSecretBytes = 32
	refreshTagBytes    = 16
	refreshTokenBytes  = len(uuid.UUID{}) + refreshSecretBytes + refreshTagBytes
)

// refreshToken is the opaque token of a session: the session's id, a secret, and a tag that proves that we
// issued it.
//
// Each secret is the HMAC of its predecessor under the server's key, so the successor of a token is always
// the same one and need not be kept to be given again. The database keeps only the SHA-256 of the newest
// token. The tag tells a spent token of ours (reuse: the session must end) from an invention (nothing
// happens), without a history of tokens. Whoever holds both the server's key and the database can
// still not refresh: the newest token is not in either.
type refreshToken struct {
	sessionID uuid.UUID
	secret    [refreshSecretBytes]byte
	tag       [refreshTagBytes]byte
}

// refreshSealer makes and checks refresh tokens under PARLEY_AUTH_REFRESH_SECRET. After that secret is
// exchanged, the newest token of each session still works, since its hash is in the database; only the grace and
// the detection of reuse are lost for the tokens before it.
type refreshSealer struct{ key []byte }

// first begins the chain of a new session.
func (s refreshSealer) first(sessionID uuid.UUID) refreshToken {
	t := refreshToken{sessionID: sessionID}
	_, _ = rand.Read(t.secret[:]) // never fails, by its documentation
	return s.tagged(t)
}

// next is the one successor of a token.
func (s refreshSealer) next(parent refreshToken) refreshToken {
	child := refreshToken{sessionID: parent.sessionID}
	copy(child.secret[:], s.mac("parley refresh successor", parent))
	return s.tagged(child)
}

// issued says whether the token was made under this key.
func (s refreshSealer) issued(t refreshToken) bool {
	want := s.tagged(t)
	return hmac.Equal(t.tag[:], want.tag[:])
}

func (s refreshSealer) tagged(t refreshToken) refreshToken {
	copy(t.tag[:], s.mac("parley refresh tag", t))
	return t
}

// mac covers the purpose, the session and the secret; each has a fixed length for its purpose, so two
// inputs never run together.
func (s refreshSealer) mac(purpose string, t refreshToken) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(purpose))
	h.Write(t.sessionID[:])
	h.Write(t.secret[:])
	return h.Sum(nil)
}

// String is the form that the client gets.
func (t refreshToken) String() string {
	raw := make([]byte, 0, refreshTokenBytes)
	raw = append(raw, t.sessionID[:]...)
	raw = append(raw, t.secret[:]...)
	raw = append(raw, t.tag[:]...)
	return refreshPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// hash is the form that the database keeps.
func (t refreshToken) hash() [sha256.Size]byte { return sha256.Sum256([]byte(t.String())) }

// isNewest says whether this is the token that the database knows.
func (t refreshToken) isNewest(tokenHash []byte) bool {
	own := t.hash()
	return hmac.Equal(own[:], tokenHash)
}

// parseRefreshToken reads what String wrote; false for anything else.
func parseRefreshToken(s string) (refreshToken, bool) {
	encoded, ok := strings.CutPrefix(s, refreshPrefix)
	if !ok {
		return refreshToken{}, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != refreshTokenBytes {
		return refreshToken{}, false
	}
	var t refreshToken
	raw = raw[copy(t.sessionID[:], raw):]
	raw = raw[copy(t.secret[:], raw):]
	copy(t.tag[:], raw)
	// The decoder skips line breaks: one token has one form.
	return t, t.String() == s
}

// refreshOutcome is what a refresh token that was presented means for its session.
type refreshOutcome int

const (
	// refreshInvalid: not ours, or the session has ended. Nothing changes.
	refreshInvalid refreshOutcome = iota
	// refreshRotates: the newest token; it is spent and its successor becomes the newest.
	refreshRotates
	// refreshRepeats: the predecessor within its grace; the answer is the newest token once more.
	refreshRepeats
	// refreshReused: a spent token; the session ends.
	refreshReused
	// refreshSuspended: the newest token of an account that may not log in. Nothing changes.
	refreshSuspended
)

// sessionState is what the outcome depends on.
type sessionState struct {
	tokenHash     []byte
	rotatedAt     time.Time
	expiresAt     time.Time
	idleExpiresAt time.Time
	revoked       bool
}

// present decides what a token means. A predecessor is known by its successor's hash being the newest
// one, which also says that the successor is unused.
func (s refreshSealer) present(t refreshToken, state sessionState, now time.Time) refreshOutcome {
	if state.revoked || !now.Before(state.expiresAt) || !now.Before(state.idleExpiresAt) {
		return refreshInvalid
	}
	if t.isNewest(state.tokenHash) {
		return refreshRotates
	}
	if !s.issued(t) {
		return refreshInvalid
	}
	child := s.next(t).hash()
	if hmac.Equal(child[:], state.tokenHash) && now.Before(state.rotatedAt.Add(refreshGrace)) {
		return refreshRepeats
	}
	return refreshReused
}
