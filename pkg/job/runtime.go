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

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/postgres"
)

// Partitions is the job that makes the partitions of tables ahead and drops the
// old ones. It sets the metric partition_runway_seconds: for how long inserts
// still have a place. An error of one table does not keep it from the others.
func Partitions(service string, pool *pgxpool.Pool, c clock.Clock, log *slog.Logger, parts ...postgres.Partitions) Job {
	runway, err := otel.Meter("github.com/parleychat/parley/pkg/job").Float64Gauge("partition_runway_seconds",
		metric.WithUnit("s"), metric.WithDescription("Time until inserts have no partition."))
	if err != nil {
		log.Error("metric cannot be made", "metric", "partition_runway_seconds", "error", err)
	}
	return Job{
		Name: "partitions", Every: time.Hour,
		Run: func(ctx context.Context) error {
			var errs []error
			for _, p := range parts {
				now := c.Now()
				until, err := p.Ensure(ctx, pool, now)
				if err != nil {
					errs = append(errs, err)
				} else if runway != nil {
					runway.Record(ctx, until.Sub(now).Seconds(), metric.WithAttributes(
						attribute.String("service", service), attribute.String("table", p.Table)))
				}
				dropped, err := p.Drop(ctx, pool, now)
				if err != nil {
					errs = append(errs, err)
				}
				if len(dropped) > 0 {
					log.InfoContext(ctx, "old partitions dropped", "partitions", dropped)
				}
			}
			return errors.Join(errs...)
		},
	}
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
