package messaging

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"time"

	"go.opentelemetry.io/otel"

	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Definition is what both shapes of the program start.
func Definition() service.Definition { return DefinitionWith(openPolicy{}) }

// DefinitionWith is Definition with another answer to who may write to whom.
func DefinitionWith(permissions Permissions) service.Definition {
	migrations, _ := fs.Sub(migrationFiles, "migrations") // fails for invalid names only
	setup := func(ctx context.Context, rt *service.Runtime) error { return setup(ctx, rt, permissions) }
	return service.Definition{Name: "messaging", Migrations: migrations, Setup: setup, Settings: &settings{}}
}

func setup(ctx context.Context, rt *service.Runtime, permissions Permissions) error {
	var cfg settings
	if err := rt.Config(&cfg); err != nil {
		return err
	}
	entries := entryPartitions()
	m, err := newMetrics() //nolint:contextcheck // its counters begin at zero, which no call has caused
	if err != nil {
		return fmt.Errorf("make metrics: %w", err)
	}
	push := &pusher{realtime: rt.Realtime, metrics: m, log: rt.Log}
	recent, err := newRecent(db.New(rt.DB), rt.Redis, rt.Log) //nolint:contextcheck // as above
	if err != nil {
		return err
	}
	typing, err := newTypists(rt.Redis, rt.Clock, rt.Log, cfg.TypingMembers)
	if err != nil {
		return err
	}
	s := &Service{
		queries: db.New(rt.DB), recent: recent, outbox: rt.Outbox, clock: rt.Clock, log: rt.Log, pusher: push,
		receipts: newReceipts(rt.Outbox, push, m, rt.Clock, rt.Log, cfg.ReceiptInterval),
		syncs:    newSyncer(db.New(rt.DB), recent, m, cfg.SyncEpoch),
		typing:   typing,
	}
	// Whatever else a connection does costs the next commit on it, and a cold one ten
	// milliseconds.
	reserved, err := rt.Reserve(ctx, cfg.Committers)
	if err != nil {
		return err
	}
	appends := &appender{db: reserved, outbox: rt.Outbox, clock: rt.Clock, partitions: entries}
	for n := range cfg.Committers {
		c := newCommitter(cfg, appends, bounded{permissions}, push, m, otel.Tracer(scope), rt.Log)
		s.committers = append(s.committers, c)
		rt.Go(fmt.Sprintf("committer %d", n+1), c.run)
	}
	for n := range syncers {
		rt.Go(fmt.Sprintf("syncer %d", n+1), s.syncs.run)
	}
	rt.Go("horizon", s.keepHorizon)
	rt.Go("receipts", s.receipts.run)
	rt.Go("metrics", func(ctx context.Context) error { return m.observe(ctx, s.waiting) })
	rt.Handle(messagingv1connect.NewMessagingServiceHandler(s, rt.Options()...))
	rt.Handle(messagingv1connect.NewPortabilityServiceHandler(s, rt.Options()...))
	rt.Listen(s.listeners()...)
	rt.Recovered(s.repush)
	rt.Partitions(entries)
	rt.Job(job.Job{Name: "prune-send-keys", Every: 10 * time.Minute, Run: s.pruneSendKeys})
	return nil
}
