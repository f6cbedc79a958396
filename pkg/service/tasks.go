package service

import (
	"context"
	"time"

	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/postgres"
)

const prepareTimeout = 10 * time.Second

// addChecks says what the process needs to be ready. Only the database is needed
// all the time. NATS has to have been there once, for the stream and the past
// revocations; without it later everything that is sent is kept, and delivered
// when it is back, so no replica leaves the balancer because of it. Redis is
// never needed.
func (s *starting) addChecks() {
	rt, panel := s.rt, s.deps.Admin
	name := func(what string) string { return rt.Name + "/" + what }
	panel.AddCheck(name("postgres"), admin.Always, func(ctx context.Context) error { return postgres.Ready(ctx, rt.DB) })
	panel.AddCheck(name("nats"), admin.Once, rt.Bus.Ready)
	panel.AddCheck(name("revocations"), admin.Once, s.revoked.Known)
	panel.AddCheck(name("partitions"), admin.Once, s.ensurePartitions)
	for _, c := range rt.checks {
		panel.AddCheck(name(c.name), c.need, c.run)
	}
}

// followRevocations keeps the set of ended sessions, by which tokens are refused.
func (s *starting) followRevocations(ctx context.Context) error {
	return s.revoked.Follow(ctx, s.rt.Bus)
}

// runListeners serves the listeners of the service.
func (s *starting) runListeners(ctx context.Context) error { return s.listeners.Run(ctx) }

// runJobs runs the jobs of the service and those of the runtime.
func (s *starting) runJobs(ctx context.Context) error { return s.jobs.Run(ctx) }

// wire makes what needs to know all that Setup has registered.
func (s *starting) wire() error {
	rt := s.rt
	s.listeners = event.NewListeners(rt.Name, rt.Bus, rt.DB, rt.Clock, rt.Log)
	if err := s.listeners.Add(rt.listeners...); err != nil {
		return err
	}
	s.jobs = job.New(rt.DB, rt.Name, rt.Clock, rt.Log)
	kept := append([]postgres.Partitions{rt.Outbox.Partitions()}, rt.partitions...)
	return s.jobs.Add(append([]job.Job{
		job.Partitions(rt.Name, rt.DB, rt.Clock, rt.Log, kept...),
		job.PruneInbox(rt.DB, rt.Clock, event.InboxKeep),
	}, rt.jobs...)...)
}

// ensurePartitions makes the partitions that the present needs, once; the job
// keeps them up. It is tried before serving. A database that is away then is no
// reason to stop: readiness calls it until it succeeds.
func (s *starting) ensurePartitions(ctx context.Context) error {
	s.partitions.Lock()
	defer s.partitions.Unlock()
	if s.partitioned {
		return nil
	}
	if err := s.rt.Outbox.Prepare(ctx); err != nil {
		return err
	}
	if err := postgres.EnsurePartitions(ctx, s.rt.DB, s.rt.Clock.Now(), s.rt.partitions...); err != nil {
		return err
	}
	s.partitioned = true
	return nil
}

// prepareTables is the first try of ensurePartitions.
func (s *starting) prepareTables(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	if err := s.ensurePartitions(ctx); err != nil {
		s.rt.Log.WarnContext(ctx, "the partitions could not be made yet", "error", err)
	}
}

// measure has the metrics tell of the pools while the service runs.
func (s *starting) measure(ctx context.Context) error {
	stop, err := postgres.Measure(s.rt.Name, s.rt.pools()...)
	if err != nil {
		s.rt.Log.WarnContext(ctx, "the pools are not measured", "error", err)
		return nil
	}
	<-ctx.Done()
	return stop()
}
