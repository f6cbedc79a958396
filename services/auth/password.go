package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/text/unicode/norm"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// hashPrefix names the form of a stored password: bcrypt over the base64 of the HMAC-SHA-384 of the
// password under the pepper. Another form gets another prefix.
const hashPrefix = "hmac-sha384-bcrypt:"

const (
	// hashQueue is how many may wait for each place at the hashing; a place is one CPU.
	hashQueue = 16
	// hashPatience is the longest wait for a place. The client is told to come again instead of timing out.
	hashPatience = 3 * time.Second
	// hashRetryAfter is what it is told.
	hashRetryAfter = 2 * time.Second
)

// passwords hashes and compares passwords. Invariants: no byte of a password is ignored, whatever its
// length; the database alone is no use for guessing, since the pepper is not in it; at most one hash per
// place is computed at a time.
type passwords struct {
	pepper  []byte
	cost    int
	places  chan struct{}
	waiting atomic.Int64
	// decoy is compared with when there is no account, so that the answer takes the same time.
	decoy string
	known breached
	// compared counts the comparisons, which are what an attempt costs.
	compared atomic.Int64
}

// newPasswords takes the pepper, bcrypt's cost (log2 of its rounds), how many hashes may run at once and the
// passwords to refuse.
func newPasswords(pepper []byte, cost, places int, known breached) (*passwords, error) {
	p := &passwords{pepper: pepper, cost: cost, places: make(chan struct{}, places), known: known}
	decoy, err := bcrypt.GenerateFromPassword(p.prehash(rand.Text()), cost)
	if err != nil {
		return nil, fmt.Errorf("hash the decoy password: %w", err)
	}
	p.decoy = hashPrefix + string(decoy)
	return p, nil
}

// prehash makes 64 printable bytes of a password of any length: below bcrypt's 72, and without the NUL at
// which some implementations stop. The key keeps hashes that leaked elsewhere from being tried here. NFC, as
// RFC 8265 (OpaqueString) asks: "é" is one password on every keyboard.
func (p *passwords) prehash(password string) []byte {
	mac := hmac.New(sha512.New384, p.pepper)
	mac.Write([]byte(norm.NFC.String(password)))
	return base64.StdEncoding.AppendEncode(nil, mac.Sum(nil))
}

// hash returns the form to store. OVERLOADED when no place gets free in time.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	hashed, err := bcrypt.GenerateFromPassword(p.prehash(password), p.cost)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	return hashPrefix + string(hashed), nil
}

// matches compares a password with a stored form; an empty form stands for "no such account" and costs the
// same. OVERLOADED when no place gets free in time.
func (p *passwords) matches(ctx context.Context, stored, password string) (bool, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	// A seeded account has no password: for whoever tries one, it does not exist.
	known := stored != "" && stored != seededHash
	if !known {
		stored = p.decoy
	}
	hashed, ok := strings.CutPrefix(stored, hashPrefix)
	if !ok {
		return false, errors.New("compare a password: the stored form is unknown to this release")
	}
	p.compared.Add(1)
	switch err := bcrypt.CompareHashAndPassword([]byte(hashed), p.prehash(password)); {
	case err == nil:
		return known, nil
	case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword):
		return false, nil
	default:
		return false, fmt.Errorf("compare a password: %w", err)
	}
}

// outdated says that a stored form has another cost than new ones. It is then made anew at the next log in, also
// because accounts of another cost could be told from the decoy by time.
func (p *passwords) outdated(stored string) bool {
	cost, err := bcrypt.Cost([]byte(strings.TrimPrefix(stored, hashPrefix)))
	return err == nil && cost != p.cost
}

// enter waits for a place. The bound on those who wait keeps a flood from holding memory and from making
// everybody wait longer than a client does.
func (p *passwords) enter(ctx context.Context) (leave func(), err error) {
	defer p.waiting.Add(-1)
	if p.waiting.Add(1) > int64(cap(p.places)*hashQueue) {
		return nil, errHashingOverloaded()
	}
	patience := time.NewTimer(hashPatience)
	defer patience.Stop()
	select {
	case p.places <- struct{}{}:
		return func() { <-p.places }, nil
	case <-patience.C:
		return nil, errHashingOverloaded()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func errHashingOverloaded() error {
	return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
		"too many people are logging in right now"), hashRetryAfter)
}

// refuseWeak returns PASSWORD_WEAK for a password of allowed length that a guesser tries first: one that is known
// from breaches, one character repeated, or the person's own name or address.
func (p *passwords) refuseWeak(password, username, email string) error {
	if ownOrRepeated(password, username, email) {
		return errPasswordWeak
	}
	known, err := p.known.contains(password)
	if err != nil {
		return err
	}
	if known {
		return errPasswordWeak
	}
	return nil
}

func ownOrRepeated(password, username, email string) bool {
	folded := foldPassword(password)
	runes := []rune(folded)
	if strings.Count(folded, string(runes[:1])) == len(runes) {
		return true
	}
	local, _, _ := strings.Cut(email, "@")
	for _, own := range []string{username, email, local} {
		if strings.EqualFold(folded, own) {
			return true
		}
	}
	return false
}

// foldPassword is the form in which passwords are looked up: a capital letter makes no other password of one that
// everybody knows.
func foldPassword(password string) string { return strings.ToLower(norm.NFC.String(password)) }
