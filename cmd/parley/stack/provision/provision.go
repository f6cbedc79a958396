// Package provision prepares the database of an embedded server for services: the database itself, and each
// service's role and schema.
//
// It owns no state and may be called on every start. It is apart from package stack so that the small program
// which the test kit builds does not link the runtime.
package provision

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/parleychat/parley/pkg/postgres"
)

// duplicateDatabase is SQLSTATE 42P04.
const duplicateDatabase = "42P04"

// EnsureService makes the database, the service's role with that password and its schema where they are
// missing, and returns the URL of the role. superURL is the superuser's, of any database of the server.
//
// A crash half-way is safe: every step looks for its own result, and the next call goes on.
func EnsureService(ctx context.Context, superURL, database, service, password string) (string, error) {
	u, err := url.Parse(superURL)
	if err != nil {
		return "", fmt.Errorf("read the superuser's URL: %w", err)
	}
	err = with(ctx, u.String(), func(conn *pgx.Conn) error { return ensureDatabase(ctx, conn, database) })
	if err != nil {
		return "", err
	}
	u.Path = "/" + database
	err = with(ctx, u.String(), func(conn *pgx.Conn) error {
		return postgres.EnsureService(ctx, conn, service, password)
	})
	if err != nil {
		return "", err
	}
	u.User = url.UserPassword(postgres.RoleName(service), password)
	return u.String(), nil
}

func ensureDatabase(ctx context.Context, conn *pgx.Conn, database string) error {
	var exists bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database).Scan(&exists)
	if err != nil {
		return fmt.Errorf("look for the database %s: %w", database, err)
	}
	if exists {
		return nil
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{database}.Sanitize())
	refused, ok := errors.AsType[*pgconn.PgError](err)
	// The catalog's index or the command itself tells it, by how close the race was.
	if ok && refused.Code == duplicateDatabase || postgres.IsUniqueViolation(err, "") {
		return nil // somebody else was faster
	}
	if err != nil {
		return fmt.Errorf("create the database %s: %w", database, err)
	}
	return nil
}

func with(ctx context.Context, url string, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect as superuser: %w", err)
	}
	return errors.Join(do(conn), conn.Close(context.WithoutCancel(ctx)))
}
