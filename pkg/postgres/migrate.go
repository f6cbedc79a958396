package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var runtimeFiles embed.FS

// RuntimeMigrations are the migrations of the tables that every service has:
// outbox, inbox, jobs. sqlc may read them beside the service's own.
func RuntimeMigrations() fs.FS {
	sub, err := fs.Sub(runtimeFiles, "migrations")
	if err != nil {
		// The folder is embedded above: fs.Sub fails on invalid names only.
		return runtimeFiles
	}
	return sub
}

// Migrate brings the schema of a service up to date: first the runtime's tables
// (version table runtime_version), then the service's own from migrations
// (version table schema_version; nil means none). Each file is one transaction
// unless it says otherwise, so after a crash the next call goes on where this
// one stopped. Several processes may call it at once: one works, the others wait
// up to a minute.
//
// url must be a direct connection of the service's role, not PgBouncer's: the
// lock belongs to the session. The limits of time of the role are lifted for
// it, except that no statement queues for a lock longer than five seconds, in
// front of everybody else.
func Migrate(ctx context.Context, url, service string, migrations fs.FS) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("parse migration url: %w", err)
	}
	cfg.RuntimeParams["search_path"] = searchPath(service)
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	cfg.RuntimeParams["lock_timeout"] = "5s"
	cfg.RuntimeParams["application_name"] = service + "-migrate"
	if err := migrateFiles(ctx, cfg, service, "runtime_version", RuntimeMigrations()); err != nil {
		return fmt.Errorf("migrate runtime tables of %s: %w", service, err)
	}
	if migrations == nil {
		return nil
	}
	if err := migrateFiles(ctx, cfg, service, "schema_version", migrations); err != nil {
		return fmt.Errorf("migrate %s: %w", service, err)
	}
	return nil
}

func migrateFiles(ctx context.Context, cfg *pgx.ConnConfig, service, table string, files fs.FS) (err error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte("parley/migrate/" + service)) // a hash never fails
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(int64(h.Sum64())), lock.WithLockTimeout(1, 60))
	if err != nil {
		return fmt.Errorf("make migration lock: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	p, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithDisableGlobalRegistry(true), goose.WithSessionLocker(locker), goose.WithTableName(table))
	if errors.Is(err, goose.ErrNoMigrations) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		var partial *goose.PartialError
		if errors.As(err, &partial) && partial.Failed != nil {
			return fmt.Errorf("apply migration %s: %w", partial.Failed.Source.Path, err)
		}
		return fmt.Errorf("apply migrations: %w", err)
	}
	return nil
}
