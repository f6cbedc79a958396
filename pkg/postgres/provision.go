package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// RoleName is the database role of a service. It is not the service's bare
// name, because "user" is a word of SQL.
func RoleName(service string) string { return "parley_" + service }

// SchemaName is the schema of a service: its name.
func SchemaName(service string) string { return service }

// ExtensionSchema holds the extensions that services may use. It is apart from
// their own schemas because a database has an extension once, and roles may not
// make one.
const ExtensionSchema = "extensions"

// extensions are those that some service's migrations name: trigrams for search.
var extensions = []string{"pg_trgm"}

// searchPath is where a service's names are looked up.
func searchPath(service string) string {
	return pgx.Identifier{SchemaName(service)}.Sanitize() + ", " + ExtensionSchema
}

var serviceName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,40}$`)

// roleSettings are limits that PgBouncer forbids as startup parameters, so the
// role carries them. A transaction that idles holds locks, hence the shortest
// limit is on that.
var roleSettings = [][2]string{
	{"idle_in_transaction_session_timeout", "10s"},
	{"lock_timeout", "5s"},
	{"statement_timeout", "30s"},
	// Every statement is prepared and finds its rows by an index, so one plan fits
	// all parameters; planning anew cost the group commit a fifth of its CPU time.
	{"plan_cache_mode", "force_generic_plan"},
	// Such a plan may be made while a table is still empty and would then read all
	// of it, long after it has grown.
	{"enable_seqscan", "off"},
	// A plan that cannot do without a sequential scan has a cost without measure
	// then, and compiling it takes seconds for a statement of a millisecond.
	{"jit", "off"},
	{"timezone", "UTC"},
}

// EnsureService makes the role and the schema of a service in the database that
// admin is connected to, or brings them up to date: login with that password,
// search_path and limits of time set on the role, rights on its own schema only,
// beside the use of the extensions, which are installed where they are missing.
// It may be called any number of times, also at once by several processes, for
// one role in several databases.
func EnsureService(ctx context.Context, admin *pgx.Conn, service, password string) error {
	if !serviceName.MatchString(service) {
		return fmt.Errorf("service name %q must be lower-case letters, digits and underscores", service)
	}
	// Roles are shared by all databases of a server, and catalogs have no row
	// locks: two sessions that alter one role make one fail with "tuple
	// concurrently updated". Everything below is repeatable, so try again.
	var err error
	for attempt := range 20 {
		if err = ensureService(ctx, admin, service, password); err == nil {
			return nil
		}
		clash := IsUniqueViolation(err, "") || hasCode(err, codeDuplicateObject, codeDuplicateSchema, codeInternalError)
		if !clash {
			break
		}
		pause := time.Duration(rand.IntN(10*(attempt+1))+1) * time.Millisecond
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
		}
	}
	return fmt.Errorf("provision service %s: %w", service, err)
}

func ensureService(ctx context.Context, admin *pgx.Conn, service, password string) error {
	role := pgx.Identifier{RoleName(service)}.Sanitize()
	schema := pgx.Identifier{SchemaName(service)}.Sanitize()
	var exists, super bool
	var database string
	err := admin.QueryRow(ctx,
		`SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1), (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), current_database()`,
		RoleName(service)).Scan(&exists, &super, &database)
	if err != nil {
		return fmt.Errorf("look up role: %w", err)
	}
	statements := make([]string, 0, 16)
	if !exists {
		statements = append(statements, "CREATE ROLE "+role+" LOGIN NOINHERIT")
	}
	statements = append(statements, "ALTER ROLE "+role+" LOGIN PASSWORD "+quoteLiteral(password))
	if !super {
		// Who is not superuser must be a member to create a schema for it.
		statements = append(statements, "GRANT "+role+" TO CURRENT_USER")
	}
	statements = append(statements, "ALTER ROLE "+role+" SET search_path = "+searchPath(service))
	for _, s := range roleSettings {
		statements = append(statements, fmt.Sprintf("ALTER ROLE %s SET %s = %s", role, s[0], quoteLiteral(s[1])))
	}
	db := pgx.Identifier{database}.Sanitize()
	statements = append(statements,
		"CREATE SCHEMA IF NOT EXISTS "+schema+" AUTHORIZATION "+role,
		"REVOKE ALL ON SCHEMA "+schema+" FROM PUBLIC",
		"REVOKE ALL ON SCHEMA public FROM PUBLIC",
		"CREATE SCHEMA IF NOT EXISTS "+ExtensionSchema,
		"GRANT USAGE ON SCHEMA "+ExtensionSchema+" TO "+role,
		"REVOKE ALL ON DATABASE "+db+" FROM PUBLIC",
		"GRANT CONNECT ON DATABASE "+db+" TO "+role,
	)
	for _, name := range extensions {
		statements = append(statements, "CREATE EXTENSION IF NOT EXISTS "+name+" SCHEMA "+ExtensionSchema)
	}
	// One transaction: after a crash all of it stands, or nothing.
	return pgx.BeginFunc(ctx, admin, func(tx pgx.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", firstWords(s, 3), err)
			}
		}
		return nil
	})
}

// quoteLiteral quotes a string for the utility statements that take no
// parameters. E” makes backslashes mean the same under every setting.
func quoteLiteral(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
}

// firstWords keeps a password out of an error.
func firstWords(s string, n int) string {
	words := strings.Fields(s)
	return strings.Join(words[:min(n, len(words))], " ")
}
