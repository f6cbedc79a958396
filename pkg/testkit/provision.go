package testkit

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

func roleOf(service string) string { return "svc_" + service }

// provision makes the service's role and schema in the database and runs its migrations as that role.
func provision(ctx context.Context, server *url.URL, database string, s Schema) error {
	conn, err := pgx.Connect(ctx, databaseURL(server, database, server.User))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	err = ensureService(ctx, conn, roleOf(s.Service))
	if err = errors.Join(err, conn.Close(ctx)); err != nil || s.Migrations == nil {
		return err
	}
	cfg, err := pgx.ParseConfig(serviceURL(server, database, s.Service))
	if err != nil {
		return fmt.Errorf("parse the URL: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, s.Migrations, goose.WithDisableGlobalRegistry(true))
	if err == nil {
		_, err = provider.Up(ctx)
	}
	return errors.Join(err, db.Close())
}

func ensureService(ctx context.Context, conn *pgx.Conn, role string) error {
	for _, statement := range []string{
		"DO $$ BEGIN CREATE ROLE " + role + " LOGIN PASSWORD '" + rolePassword + "'; EXCEPTION WHEN duplicate_object THEN END $$",
		"CREATE SCHEMA IF NOT EXISTS " + role + " AUTHORIZATION " + role,
		"ALTER ROLE " + role + " SET search_path = " + role,
		"REVOKE ALL ON SCHEMA public FROM PUBLIC",
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("make role and schema: %w", err)
		}
	}
	return nil
}
