// Package postgres opens the database for a service and keeps its schema.
//
// It owns: the settings of the pool, the role and schema of a service
// (EnsureService), the migrations of the runtime's own tables and of the
// service's tables (Migrate), and the range partitions of growing tables
// (Partitions).
//
// Invariants: every service connects as its own role, whose rights end at its
// own schema; nothing here is sent as a startup parameter that PgBouncer in
// transaction mode refuses, so limits of time belong to the role; no SQL calls
// now(): time is passed in.
//
// It never knows a domain, and it never holds a session-level lock outside of
// Migrate, which wants a direct connection.
package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"
	"go.opentelemetry.io/otel/attribute"
)

// Names of the ways to run a query that Config.QueryExecMode takes.
const (
	// ExecModeCacheStatement prepares statements by name: the fastest, for a
	// direct connection, or PgBouncer 1.21 and later with
	// max_prepared_statements.
	ExecModeCacheStatement = "cache_statement"
	// ExecModeCacheDescribe remembers only the types of a statement: for
	// PgBouncer in transaction mode.
	ExecModeCacheDescribe = "cache_describe"
)

// Config says how to reach the database of one service.
type Config struct {
	// URL is a postgres:// URL of the service's own role.
	URL string
	// MaxConns bounds the pool; zero means 16.
	MaxConns int32
	// ApplicationName is shown in pg_stat_activity; by custom the service.
	ApplicationName string
	// QueryExecMode is one of the ExecMode constants; empty means
	// ExecModeCacheStatement.
	QueryExecMode string
}

// Open makes a pool. It does not wait for the server: a service may start
// before its database, and Ready tells when it is there. The error says that
// the configuration is invalid.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// pgx masks the password in this error.
		return nil, fmt.Errorf("parse database url: %w", err)
	}
	pc.MaxConns = cfg.MaxConns
	if pc.MaxConns <= 0 {
		pc.MaxConns = 16
	}
	// A dead idle connection is found in seconds, not in pgx's minute, so that
	// a failover does not surface in the next hundred calls.
	pc.HealthCheckPeriod = 15 * time.Second
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.MaxConnLifetime = 30 * time.Minute
	pc.MaxConnLifetimeJitter = 5 * time.Minute
	pc.ConnConfig.ConnectTimeout = 5 * time.Second
	if cfg.ApplicationName != "" {
		pc.ConnConfig.RuntimeParams["application_name"] = cfg.ApplicationName
	}
	// Of pgx's two caches a mode needs one. The other one, made in advance, is 37 KB of each connection that the
	// garbage collector looks through for nothing.
	switch cfg.QueryExecMode {
	case "", ExecModeCacheStatement:
		pc.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
		pc.ConnConfig.DescriptionCacheCapacity = 0
	case ExecModeCacheDescribe:
		pc.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		pc.ConnConfig.StatementCacheCapacity = 0
	default:
		return nil, fmt.Errorf("query exec mode %q is neither %q nor %q",
			cfg.QueryExecMode, ExecModeCacheStatement, ExecModeCacheDescribe)
	}
	// Without it pgx writes a UUID as text, fails, and parses the text: in arrays
	// of ids that was a twelfth of messaging's CPU time.
	pc.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		pgxuuid.Register(conn.TypeMap())
		conn.TypeMap().RegisterType(&pgtype.Type{Name: "uuid", OID: pgtype.UUIDOID, Codec: uuidCodec{}})
		return nil
	}
	pc.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithDisableConnectionDetailsInAttributes(),
		otelpgx.WithTracerAttributes(attribute.String("service", cfg.ApplicationName)),
		otelpgx.WithMeterAttributes(attribute.String("service", cfg.ApplicationName)))
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("open database pool: %w", err)
	}
	return pool, nil
}

// uuidCodec is that of the library, which pgx would not ask for a plan to read: it looks
// first whether a type reads SQL values by itself, as uuid.UUID does, from text.
type uuidCodec struct{ pgxuuid.UUIDCodec }

func (c uuidCodec) PlanScan(m *pgtype.Map, oid uint32, format int16, target any) pgtype.ScanPlan {
	wrapped, inner, ok := pgxuuid.TryWrapUUIDScanPlan(target)
	if !ok {
		return c.UUIDCodec.PlanScan(m, oid, format, target)
	}
	wrapped.SetNext(c.UUIDCodec.PlanScan(m, oid, format, inner))
	return wrapped
}

// Ready tells by its error why the database cannot be used now. Give ctx a
// deadline.
func Ready(ctx context.Context, pool *pgxpool.Pool) error {
	if err := pool.Ping(ctx); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}
