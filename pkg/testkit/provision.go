package testkit

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/postgres"
)

// provision makes the service's role and schema in the database and runs its migrations as that role, by the
// same code as production.
func provision(ctx context.Context, server *url.URL, database string, s Schema) error {
	conn, err := pgx.Connect(ctx, databaseURL(server, database, server.User))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	errEnsure := postgres.EnsureService(ctx, conn, s.Service, rolePassword)
	if err := errors.Join(errEnsure, conn.Close(ctx)); err != nil {
		return err
	}
	return postgres.Migrate(ctx, serviceURL(server, database, s.Service), s.Service, s.Migrations)
}

// grant gives a copy of a template the rights on the database itself, which a copy does not inherit.
func grant(ctx context.Context, conn *pgx.Conn, database string, schemas []Schema) error {
	statements := []string{"REVOKE ALL ON DATABASE " + database + " FROM PUBLIC"}
	for _, s := range schemas {
		role := pgx.Identifier{postgres.RoleName(s.Service)}.Sanitize()
		statements = append(statements, "GRANT CONNECT ON DATABASE "+database+" TO "+role)
	}
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("grant rights on the database: %w", err)
		}
	}
	return nil
}
