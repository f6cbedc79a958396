package testkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/postgres"
)

const (
	// templateLock is the advisory lock under which templates and roles are made: both belong to the whole
	// server, and two sessions that alter one role at once fail.
	templateLock = 0x7061726c6579 // "parley"
	// rolePassword is the password of every service role on test servers.
	rolePassword = "test"
)

// Schema is one service's share of a database.
type Schema struct {
	// Service is the name of the domain: "auth".
	Service string
	// Migrations holds the numbered .sql files at its root.
	Migrations fs.FS
}

// Database is a database of one test.
type Database struct {
	t        testing.TB
	name     string
	admin    string
	services map[string]string
}

// AdminURL is the superuser's URL of this database.
func (d *Database) AdminURL() string { return d.admin }

// URL is the URL that the service itself would use: its role, whose search_path is its schema. It fails the
// test for a service that the database was not made with.
func (d *Database) URL(service string) string {
	d.t.Helper()
	u, ok := d.services[service]
	if !ok {
		d.t.Fatalf("testkit: the database was made without a schema of %q", service)
	}
	return u
}

// NewDatabase makes a database with the migrated schemas of the given services, and drops it after the test.
// The first test on a server that asks for a set of migrations pays for running them; the others get a copy of
// the template in about 20 ms.
func NewDatabase(t testing.TB, schemas ...Schema) *Database {
	t.Helper()
	adminURL := servers(t).Postgres
	d, err := makeDatabase(t, adminURL, schemas)
	if err != nil {
		t.Fatalf("make the test database: %v", err)
	}
	t.Cleanup(func() {
		if err := execute(cleanupContext(t), adminURL, "DROP DATABASE IF EXISTS "+d.name+" WITH (FORCE)"); err != nil {
			t.Errorf("drop the test database: %v", err)
		}
	})
	return d
}

// ServiceDatabase is NewDatabase for a single service. It returns the URL of the service's role.
func ServiceDatabase(t testing.TB, service string, migrations fs.FS) string {
	t.Helper()
	return NewDatabase(t, Schema{Service: service, Migrations: migrations}).URL(service)
}

// EmptyDatabase makes an empty database and returns the superuser's URL of it.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return NewDatabase(t).AdminURL()
}

func makeDatabase(t testing.TB, adminURL string, schemas []Schema) (*Database, error) {
	base, err := url.Parse(adminURL)
	if err != nil {
		return nil, fmt.Errorf("read the URL of the test server: %w", err)
	}
	d := &Database{t: t, name: randomName("test_"), services: map[string]string{}}
	if err := createFromTemplate(t.Context(), base, d.name, schemas); err != nil {
		return nil, err
	}
	d.admin = databaseURL(base, d.name, base.User)
	for _, s := range schemas {
		d.services[s.Service] = serviceURL(base, d.name, s.Service)
	}
	return d, nil
}

func createFromTemplate(ctx context.Context, server *url.URL, name string, schemas []Schema) (err error) {
	conn, err := pgx.Connect(ctx, server.String())
	if err != nil {
		return fmt.Errorf("connect to the test server: %w", err)
	}
	// Closing the session also releases the template lock, on every path.
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	statement := "CREATE DATABASE " + name
	if len(schemas) > 0 {
		template, err := ensureTemplate(ctx, conn, server, schemas)
		if err != nil {
			return err
		}
		statement += " TEMPLATE " + template
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	return grant(ctx, conn, name, schemas)
}

// ensureTemplate returns the name of a database that holds the migrated schemas, and makes it when missing.
// The mark datistemplate is set last: a template that a killed test run left unfinished is made anew.
func ensureTemplate(ctx context.Context, conn *pgx.Conn, server *url.URL, schemas []Schema) (string, error) {
	digest, err := digestOf(schemas)
	if err != nil {
		return "", err
	}
	template := "template_" + digest
	if done, err := templateDone(ctx, conn, template); err != nil || done {
		return template, err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", templateLock); err != nil {
		return "", fmt.Errorf("take the template lock: %w", err)
	}
	if done, err := templateDone(ctx, conn, template); err != nil || done {
		return template, err
	}
	for _, statement := range []string{
		"DROP DATABASE IF EXISTS " + template + " WITH (FORCE)", "CREATE DATABASE " + template,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return "", fmt.Errorf("make the template: %w", err)
		}
	}
	for _, s := range schemas {
		if err := provision(ctx, server, template, s); err != nil {
			return "", fmt.Errorf("template of %s: %w", s.Service, err)
		}
	}
	if _, err := conn.Exec(ctx, "ALTER DATABASE "+template+" IS_TEMPLATE true"); err != nil {
		return "", fmt.Errorf("mark the template as finished: %w", err)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", templateLock); err != nil {
		return "", fmt.Errorf("release the template lock: %w", err)
	}
	return template, nil
}

func templateDone(ctx context.Context, conn *pgx.Conn, template string) (bool, error) {
	var done bool
	err := conn.QueryRow(ctx,
		"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)", template).Scan(&done)
	if err != nil {
		return false, fmt.Errorf("look for the template: %w", err)
	}
	return done, nil
}

// digestOf names a set of schemas by everything that decides how the template looks.
func digestOf(schemas []Schema) (string, error) {
	h := sha256.New()
	sorted := slices.SortedFunc(slices.Values(schemas), func(a, b Schema) int { return strings.Compare(a.Service, b.Service) })
	for _, s := range sorted {
		_, _ = fmt.Fprintf(h, "service %q\n", s.Service) // a hash takes everything
		for _, files := range []fs.FS{postgres.RuntimeMigrations(), s.Migrations} {
			if err := digestFiles(h, files); err != nil {
				return "", fmt.Errorf("read the migrations of %s: %w", s.Service, err)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

func digestFiles(h hash.Hash, files fs.FS) error {
	if files == nil {
		return nil
	}
	return fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, path)
		_, _ = fmt.Fprintf(h, "file %q %d\n%s\n", path, len(content), content)
		return err
	})
}

// execute runs one statement on a connection of its own.
func execute(ctx context.Context, adminURL, statement string) error {
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return fmt.Errorf("connect to the test server: %w", err)
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// databaseURL is the URL of another database and user of the server.
func databaseURL(server *url.URL, name string, user *url.Userinfo) string {
	u := *server
	u.Path, u.User = "/"+name, user
	return u.String()
}

func serviceURL(server *url.URL, name, service string) string {
	return databaseURL(server, name, url.UserPassword(postgres.RoleName(service), rolePassword))
}
