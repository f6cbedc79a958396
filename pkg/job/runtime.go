package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/postgres"
)

// Partitions is the job that makes the partitions of tables ahead and drops the
// old ones. It sets the metric partition_ends_timestamp_seconds: until when inserts
// have a place. That is a point in time and not what is left of it, which would
// stand still when the job does. An error of one table does not keep it from the
// others.
func Partitions(service string, pool *pgxpool.Pool, c clock.Clock, log *slog.Logger, parts ...postgres.Partitions) Job {
	ends, err := otel.Meter(scope).Float64Gauge("partition_ends_timestamp_seconds",
		metric.WithUnit("s"), metric.WithDescription("When inserts will have no partition, in seconds since 1970; told by who led last."))
	if err != nil {
		log.Error("metric cannot be made", "metric", "partition_ends_timestamp_seconds", "error", err)
		ends = noop.Float64Gauge{}
	}
	return Job{
		Name: "partitions", Every: time.Hour,
		Run: func(ctx context.Context) error {
			var errs []error
			for _, p := range parts {
				now := c.Now()
				until, err := ensure(ctx, p, pool, now)
				errs = append(errs, err)
				if !until.IsZero() {
					ends.Record(ctx, float64(until.Unix()), metric.WithAttributes(
						attribute.String("service", service), attribute.String("table", p.Table)))
				}
				dropped, err := p.Drop(ctx, pool, now)
				errs = append(errs, err)
				if len(dropped) > 0 {
					log.InfoContext(ctx, "old partitions dropped", "partitions", dropped)
				}
			}
			return errors.Join(errs...)
		},
	}
}

// ensure returns until when there are partitions also if it could make none: who
// has just begun to lead would tell nothing otherwise. The zero time: not known.
func ensure(ctx context.Context, p postgres.Partitions, pool *pgxpool.Pool, now time.Time) (time.Time, error) {
	until, err := p.Ensure(ctx, pool, now)
	if err == nil {
		return until, nil
	}
	until, unknown := p.Ends(ctx, pool, now)
	if unknown != nil {
		return time.Time{}, errors.Join(err, unknown)
	}
	return until, err
}

// pruneRows is how many rows one DELETE takes: short locks, little WAL at once.
const pruneRows = 5000

// PruneInbox is the job that deletes inbox rows older than keep (by custom
// event.InboxKeep), in batches.
func PruneInbox(pool *pgxpool.Pool, c clock.Clock, keep time.Duration) Job {
	return Job{
		Name: "prune-inbox", Every: time.Hour,
		Run: func(ctx context.Context) error {
			for {
				tag, err := pool.Exec(ctx, `
					DELETE FROM inbox WHERE (listener, event_id) IN
					(SELECT listener, event_id FROM inbox WHERE at < $1 ORDER BY at LIMIT $2)`, c.Now().Add(-keep), pruneRows)
				if err != nil {
					return fmt.Errorf("prune inbox: %w", err)
				}
				if tag.RowsAffected() < pruneRows {
					return nil
				}
			}
		},
	}
}
