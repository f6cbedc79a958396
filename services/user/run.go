package user

import (
	"context"
	"embed"
	"io/fs"
	"time"

	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Definition is what both shapes of the program start.
func Definition() service.Definition { return DefinitionWith(openVisibility{}) }

// DefinitionWith is Definition with another answer to who may see whose presence.
func DefinitionWith(visibility Visibility) service.Definition {
	migrations, _ := fs.Sub(migrationFiles, "migrations") // fails for invalid names only
	setup := func(ctx context.Context, rt *service.Runtime) error { return setup(ctx, rt, visibility) }
	return service.Definition{Name: "user", Migrations: migrations, Setup: setup, Settings: &settings{}}
}

func setup(ctx context.Context, rt *service.Runtime, visibility Visibility) error {
	var cfg settings
	if err := rt.Config(&cfg); err != nil {
		return err
	}
	if len(rt.Services) == 0 {
		rt.Log.WarnContext(ctx, "nobody can be deleted and nothing exported: PARLEY_USER_SERVICES is not set")
	}
	s := &Service{
		pool: rt.DB, outbox: rt.Outbox, conn: rt.Bus.Conn(), clock: rt.Clock, log: rt.Log,
		accounts:      authv1connect.NewAuthServiceClient(rt.Dial("auth")),
		confirmations: authv1connect.NewConfirmationServiceClient(rt.Dial("auth")),
		services:      rt.Services, exporters: dialExporters(rt), exports: make(chan struct{}, cfg.ExportPlaces),
		confirmationAge: cfg.ConfirmationAge, deletionGrace: cfg.DeletionGrace, erasureLate: cfg.ErasureLate,
		erasureRepeat: cfg.ErasureRepeat,
		exportsPerDay: cfg.ExportsPerDay,
	}
	if err := s.setupHot(rt, cfg.SearchLimit); err != nil { //nolint:contextcheck // its counters begin at zero, which no call has caused
		return err
	}
	var err error
	if s.pace, err = newPace(rt, cfg); err != nil {
		return err
	}
	rt.Handle(userv1connect.NewUserServiceHandler(s, rt.Options()...))
	rt.Handle(userv1connect.NewProfileServiceHandler(s, rt.Options()...))
	rt.Handle(userv1connect.NewDirectoryServiceHandler(s, rt.Options()...))
	rt.Handle(userv1connect.NewDeletionServiceHandler(s, rt.Options()...))
	path, exports := userv1connect.NewExportServiceHandler(s, rt.Options()...)
	rt.Handle(path, unstalled(exports, cfg.ExportStall))
	rt.Listen(s.listeners()...)
	rt.Listen(s.reports()...)
	rt.Job(job.Job{Name: "finish-deletions", Every: 10 * time.Second, Run: s.finishDeletions})
	rt.Job(job.Job{Name: "watch-erasures", Every: 10 * time.Minute, Run: s.watchErasures})
	rt.Job(job.Job{Name: "index-names", Every: 10 * time.Minute, Run: s.indexNames})
	rt.Job(job.Job{Name: "prune-exports", Every: time.Hour, Run: s.pruneExports})
	rt.Go("erasure metrics", s.observeErasures)
	return setupPresence(ctx, rt, cfg, s.pace, visibility)
}

// setupPresence starts what tells who is online. Without Redis nothing is known.
func setupPresence(ctx context.Context, rt *service.Runtime, cfg settings, pace *pace, visibility Visibility) error {
	s := &sightings{
		pool: rt.DB, outbox: rt.Outbox, clock: rt.Clock, log: rt.Log, conn: rt.Bus.Conn(), visibility: visibility, pace: pace,
	}
	rt.Handle(userv1connect.NewPresenceServiceHandler(s, rt.Options()...))
	rt.Job(job.Job{Name: "forget-presence", Every: forgetEvery, Run: s.forgetDeleted})
	if rt.Redis == nil {
		rt.Log.WarnContext(ctx, "it is not known who is online: PARLEY_USER_REDIS_URL is not set")
		return nil
	}
	s.roster = presence.NewRoster(rt.Redis)
	judge, err := newJudge(s, rt.Bus, cfg.PresenceGrace)
	if err != nil {
		return err
	}
	rt.Go("presence", judge.run)
	rt.Job(job.Job{Name: "audit-presence", Every: auditEvery, Run: judge.audit})
	return nil
}
