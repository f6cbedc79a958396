// Package crowd is the file of people that `parley seed` makes and `parley load` reads: who they are, a
// session of each, and tokens for it.
//
// It owns the form of that file. Beside it lies the key that signs their tokens, so that a run may last longer
// than a token: both files are readable by their owner alone and belong to nobody else. It never
// writes the key anywhere but there.
package crowd

import (
	"bufio"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/token"
)

// private is the mode of both files.
const private = 0o600

// Person is one line of the file.
type Person struct {
	ID      uuid.UUID `json:"id"`
	Session uuid.UUID `json:"session"`
	Token   string    `json:"token"`
	// Expires is the token's end, in whole seconds.
	Expires time.Time `json:"expires_at"`
}

// Mint makes tokens as the deployment does. It is what the key file holds.
type Mint struct {
	KeyID string `json:"kid"`
	// Seed is the Ed25519 private key.
	Seed     []byte `json:"seed"`
	Issuer   string `json:"issuer"`
	Audience string `json:"audience"`
	// LifeSeconds is how long a token lives; verifiers refuse longer ones than they were told to.
	LifeSeconds int `json:"life_seconds"`
}

// NewMint takes the deployment's signing key and what it puts into tokens.
func NewMint(key token.SigningKey, issuer, audience string, life time.Duration) Mint {
	return Mint{KeyID: key.ID, Seed: key.Private.Seed(), Issuer: issuer, Audience: audience, LifeSeconds: int(life.Seconds())}
}

// Renew gives a person a new token, good from now on.
func (m Mint) Renew(p *Person, now time.Time) error {
	if len(m.Seed) != ed25519.SeedSize {
		return errors.New("sign a token: the key file holds no key")
	}
	expires := now.Add(time.Duration(m.LifeSeconds) * time.Second).Truncate(time.Second)
	raw, err := token.SignAccess(token.SigningKey{ID: m.KeyID, Private: ed25519.NewKeyFromSeed(m.Seed)}, token.Claims{
		UserID: p.ID, SessionID: p.Session, Role: identity.RoleUser, IssuedAt: now, ExpiresAt: expires,
	}, m.Issuer, m.Audience)
	if err != nil {
		return err
	}
	p.Token, p.Expires = raw, expires
	return nil
}

// KeyPath is where the key of a file of people lies.
func KeyPath(path string) string { return path + ".key" }

// Write replaces both files.
func Write(path string, people []Person, mint Mint) error {
	key, err := json.Marshal(mint)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	if err := writePrivate(KeyPath(path), func(w *bufio.Writer) error { _, err := w.Write(key); return err }); err != nil {
		return err
	}
	return writePrivate(path, func(w *bufio.Writer) error {
		lines := json.NewEncoder(w)
		for i := range people {
			if err := lines.Encode(&people[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// writePrivate writes beside the file and renames, so that a file with a wider mode is replaced and a crash
// leaves the old one.
func writePrivate(path string, fill func(*bufio.Writer) error) error {
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, private)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	w := bufio.NewWriter(file)
	err = errors.Join(file.Chmod(private), fill(w), w.Flush(), file.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Read reads n people after the first skip ones, and the key. It fails if there are fewer.
func Read(path string, skip, n int) ([]Person, Mint, error) {
	var mint Mint
	key, err := os.ReadFile(KeyPath(path))
	if err != nil {
		return nil, mint, fmt.Errorf("read the key of the people: %w", err)
	}
	if err := json.Unmarshal(key, &mint); err != nil {
		return nil, mint, fmt.Errorf("read %s: %w", KeyPath(path), err)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, mint, fmt.Errorf("read the people: %w", err)
	}
	defer func() { _ = file.Close() }() // was only read
	people := make([]Person, 0, n)
	lines := json.NewDecoder(bufio.NewReader(file))
	for at := 0; len(people) < n; at++ {
		var p Person
		if err := lines.Decode(&p); err != nil {
			return nil, mint, fmt.Errorf("%s holds %d people, %d are needed: `parley seed --users %d` makes them: %w", path, at, skip+n, skip+n, err)
		}
		if at >= skip {
			people = append(people, p)
		}
	}
	return people, mint, nil
}
