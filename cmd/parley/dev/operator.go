package dev

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/parleychat/parley/pkg/postgres"
)

// runningName is the file that tells other commands where a running `parley dev` is.
const runningName = "running.json"

// Operator is what the operator of a deployment has, and nobody else.
type Operator struct {
	// Ready is where everything is.
	Ready Ready
	// Database is the URL of each service's role.
	Database map[string]string
	// KeyEncryptionKey is PARLEY_AUTH_KEY_ENCRYPTION_KEY.
	KeyEncryptionKey []byte
}

// announce writes down where everything is, for ReadOperator. The URL in it holds
// the superuser's password, as the data folder does.
func announce(data string, ready Ready) (withdraw func() error, err error) {
	raw, err := json.Marshal(ready)
	if err != nil {
		return nil, fmt.Errorf("encode where everything is: %w", err)
	}
	path := filepath.Join(data, runningName)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return nil, fmt.Errorf("write where everything is: %w", err)
	}
	return func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		return nil
	}, nil
}

// ReadOperator finds the access to the `parley dev` that runs on a data folder. After one that was
// killed the file is stale: what it names then does not answer.
func ReadOperator(data string) (Operator, error) {
	raw, err := os.ReadFile(filepath.Join(data, runningName))
	if err != nil {
		return Operator{}, fmt.Errorf("no `parley dev` runs on %s: %w", data, err)
	}
	o := Operator{Database: map[string]string{}}
	if err := json.Unmarshal(raw, &o.Ready); err != nil {
		return Operator{}, fmt.Errorf("read %s of %s: %w", runningName, data, err)
	}
	var names []string
	for _, d := range Domains() {
		names = append(names, d.Name)
	}
	s, err := loadSecrets(data, names)
	if err != nil {
		return Operator{}, err
	}
	super, err := url.Parse(o.Ready.Postgres)
	if err != nil {
		return Operator{}, fmt.Errorf("read the database's URL: %w", err)
	}
	for _, name := range names {
		role := *super
		role.User, role.Path = url.UserPassword(postgres.RoleName(name), s.Database[name]), "/"+databaseName
		o.Database[name] = role.String()
	}
	o.KeyEncryptionKey, err = base64.StdEncoding.DecodeString(s.Settings["PARLEY_AUTH_KEY_ENCRYPTION_KEY"])
	if err != nil {
		return Operator{}, fmt.Errorf("read the key encryption key: %w", err)
	}
	return o, nil
}
