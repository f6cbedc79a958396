// Package secrets makes the secrets of the overlay for development: passwords,
// keys and the files that kustomize reads them from.
//
// Invariants: a value is random, made once and kept in values.json beside the
// files; the files follow from the values. What exists never changes, because the
// databases of the cluster were made with it; a domain that is new gets new values.
//
// It never makes a secret for production.
package secrets

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// own are the secrets of a domain beside those that every service has, each 32
// random bytes.
var own = map[string][]string{
	"auth": {"KEY_ENCRYPTION_KEY", "REFRESH_SECRET", "PASSWORD_PEPPER"},
}

// Write makes what is missing in dir for these domains. After a crash the next
// call goes on: values are stored before anything is made of them.
func Write(dir string, domains []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of secrets: %w", err)
	}
	v, err := load(filepath.Join(dir, "values.json"))
	if err != nil {
		return err
	}
	domains = slices.Sorted(slices.Values(domains))
	files := v.files(domains)
	if err := v.save(); err != nil {
		return err
	}
	for name, lines := range files {
		if err := replace(filepath.Join(dir, name), strings.Join(lines, "\n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// values are random strings by name, 32 bytes in hexadecimal each.
type values struct {
	path string
	byID map[string]string
}

func load(path string) (*values, error) {
	v := &values{path: path, byID: map[string]string{}}
	raw, err := os.ReadFile(path) //nolint:gosec // G304: the caller's folder
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the values of secrets: %w", err)
	}
	if err := json.Unmarshal(raw, &v.byID); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

func (v *values) save() error {
	raw, err := json.MarshalIndent(v.byID, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the values of secrets: %w", err)
	}
	return replace(v.path, string(raw)+"\n")
}

// random returns the value of that name, made at its first use.
func (v *values) random(name string) []byte {
	raw, err := hex.DecodeString(v.byID[name])
	if err != nil || len(raw) != 32 {
		raw = make([]byte, 32)
		_, _ = rand.Read(raw) // crypto/rand does not fail
		v.byID[name] = hex.EncodeToString(raw)
	}
	return raw
}

func (v *values) password(name string) string {
	return base64.RawURLEncoding.EncodeToString(v.random(name)[:24])
}

func (v *values) key(name string) string { return base64.StdEncoding.EncodeToString(v.random(name)) }

// files are the lines of each file. Every service gets the public keys of all
// others; which method takes whose call is said by the protos.
func (v *values) files(domains []string) map[string][]string {
	public := make([]string, 0, len(domains))
	for _, d := range domains {
		key, _ := ed25519.NewKeyFromSeed(v.random("service/" + d)).Public().(ed25519.PublicKey) // what Public of such a key returns
		public = append(public, d+"="+base64.RawURLEncoding.EncodeToString(key))
	}
	redis := v.password("redis")
	files := map[string][]string{
		"redis.env":    {"REDIS_PASSWORD=" + redis},
		"postgres.env": {"POSTGRES_PASSWORD=" + v.password("postgres")},
		"gateway.env": {
			"PARLEY_GATEWAY_NATS_URL=" + v.nats("gateway"),
			"PARLEY_GATEWAY_REDIS_URL=redis://:" + redis + "@redis:6379/0",
		},
		"logins.conf": {login("gateway", v.password("nats/gateway")), login("operator", v.password("nats/operator"))},
	}
	for _, d := range domains {
		role := v.password("database/" + d)
		prefix := "PARLEY_" + strings.ToUpper(d) + "_"
		files[d+".env"] = []string{
			prefix + "DATABASE_URL=postgres://parley_" + d + ":" + role + "@postgres:5432/parley?sslmode=disable",
			prefix + "NATS_URL=" + v.nats(d),
			prefix + "REDIS_URL=redis://:" + redis + "@redis:6379/0",
			prefix + "SERVICE_KEY=" + v.key("service/"+d),
			prefix + "SERVICE_PUBLIC_KEYS=" + strings.Join(public, ","),
		}
		for _, name := range own[d] {
			files[d+".env"] = append(files[d+".env"], prefix+name+"="+v.key("own/"+d+"/"+name))
		}
		files["postgres.env"] = append(files["postgres.env"], "PASSWORD_"+d+"="+role)
		files["logins.conf"] = append(files["logins.conf"], login(d, v.password("nats/"+d)))
	}
	return files
}

func (v *values) nats(name string) string {
	return "nats://" + name + ":" + v.password("nats/"+name) + "@nats:4222"
}

// login is a variable that deploy/nats/permissions.conf uses.
func login(name, password string) string {
	return strings.ToUpper(name) + "_PASSWORD: \"" + password + "\""
}

// replace writes a new file and renames it over the old one: a crash leaves one of
// the two and never half of one.
func replace(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return fmt.Errorf("write a secret: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write a secret: %w", err)
	}
	return nil
}
