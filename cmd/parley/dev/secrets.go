package dev

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// secrets are what an operator would have to choose. They are made at the first
// start and kept beside the data, which is sealed with some of them; they leave
// this folder for nobody and are of no use anywhere else.
type secrets struct {
	// Database is the password of each service's role.
	Database map[string]string `json:"database"`
	// ServiceKeys are the Ed25519 seeds with which services sign their calls.
	ServiceKeys map[string][]byte `json:"service_keys"`
	// Settings are the variables of services that hold secrets, whole.
	Settings map[string]string `json:"settings"`
}

// secretSettings are the required secrets of the services, each 32 random bytes.
var secretSettings = []string{
	"PARLEY_AUTH_KEY_ENCRYPTION_KEY",
	"PARLEY_AUTH_REFRESH_SECRET",
	"PARLEY_AUTH_PASSWORD_PEPPER",
}

// loadSecrets reads the secrets of the folder and adds what is missing, for
// example of a domain that is new.
func loadSecrets(dir string, domains []string) (*secrets, error) {
	s := &secrets{Database: map[string]string{}, ServiceKeys: map[string][]byte{}, Settings: map[string]string{}}
	path := filepath.Join(dir, "secrets.json")
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read secrets: %w", err)
	default:
		if err := json.Unmarshal(raw, s); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	for _, domain := range domains {
		if s.Database[domain] == "" {
			s.Database[domain] = base64.RawURLEncoding.EncodeToString(random(24))
		}
		if s.ServiceKeys[domain] == nil {
			s.ServiceKeys[domain] = random(ed25519.SeedSize)
		}
	}
	for _, name := range secretSettings {
		if s.Settings[name] == "" {
			s.Settings[name] = base64.StdEncoding.EncodeToString(random(32))
		}
	}
	if err := s.save(path); err != nil {
		return nil, err
	}
	return s, nil
}

// save writes a new file and renames it over the old one, so that a crash
// leaves one of the two and never half of one.
func (s *secrets) save(path string) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode secrets: %w", err)
	}
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write secrets: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write secrets: %w", err)
	}
	return nil
}

// privateKey is the key of a service, and callers the public ones of all.
func (s *secrets) privateKey(domain string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(s.ServiceKeys[domain])
}

func (s *secrets) callers() map[string]ed25519.PublicKey {
	public := make(map[string]ed25519.PublicKey, len(s.ServiceKeys))
	for name, seed := range s.ServiceKeys {
		// A private key is the seed followed by the public key (RFC 8032).
		public[name] = ed25519.PublicKey(ed25519.NewKeyFromSeed(seed)[ed25519.SeedSize:])
	}
	return public
}

// environ gives the settings in the form of os.Environ.
func (s *secrets) environ() []string {
	environ := make([]string, 0, len(s.Settings))
	for name, value := range s.Settings {
		environ = append(environ, name+"="+value)
	}
	return environ
}

// random returns n random bytes; crypto/rand does not fail.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
