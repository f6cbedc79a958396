package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/redis/rueidis"

	"github.com/parleychat/parley/cmd/parley/mailbox"
	"github.com/parleychat/parley/cmd/parley/stack"
	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/telemetry"
)

// startTimeout bounds the start; a database that recovers from a crash takes
// longest.
const startTimeout = 90 * time.Second

// process is everything that runs, and how it is ended: what was started last
// ends first.
type process struct {
	o       Options
	log     *slog.Logger
	secrets *secrets
	environ []string
	names   []string // of all services

	stack    *stack.Stack
	redis    rueidis.Client
	admin    *admin.Server
	services *rpc.InProcess
	loopback *realtime.Loopback
	ready    Ready

	ends   []func() error
	failed chan error // the first part that ended by itself
}

// wipe removes the data and the secrets that seal it. The log stays.
func wipe(data string) error {
	if err := stack.Wipe(data); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(data, "secrets.json")); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("wipe secrets: %w", err)
	}
	return nil
}

// start starts all parts. On an error nothing is left running.
func start(ctx context.Context, o Options, environ []string) (_ *process, err error) {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p := &process{o: o, services: rpc.NewInProcess(), loopback: realtime.NewLoopback(), failed: make(chan error, 8)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	domains := Domains()
	for _, d := range domains {
		p.names = append(p.names, d.Name)
	}
	if p.secrets, err = loadSecrets(o.Data, p.names); err != nil {
		return nil, err
	}
	// What the developer sets goes before what is made here.
	p.environ = append(p.secrets.environ(), environ...)
	if err := p.startTelemetry(starting); err != nil {
		return nil, err
	}
	if err := p.startStack(starting); err != nil {
		return nil, err
	}
	if err := p.catchMails(environ); err != nil {
		return nil, err
	}
	// Parts live until they are stopped in order, not until ctx ends.
	life := context.WithoutCancel(ctx)
	if err := p.startAdmin(life); err != nil {
		return nil, err
	}
	for _, d := range domains {
		if err := p.startService(life, d); err != nil {
			return nil, err
		}
	}
	if err := p.startGateway(life); err != nil {
		return nil, err
	}
	if err := p.awaitReady(starting); err != nil {
		return nil, err
	}
	if p.ready.Accounts, err = p.demoAccounts(starting); err != nil {
		return nil, err
	}
	p.admin.Started()
	return p, nil
}

// onStop adds a step of the end.
func (p *process) onStop(end func() error) { p.ends = append(p.ends, end) }

// stop ends all parts, the last started first.
func (p *process) stop() error {
	var err error
	for _, end := range slices.Backward(p.ends) {
		err = errors.Join(err, end())
	}
	p.ends = nil
	return err
}

// wait returns when ctx has ended or a part has failed, after everything was
// stopped.
func (p *process) wait(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
	case err = <-p.failed:
	case <-p.stack.Postgres.Done():
		err = errors.New("PostgreSQL has ended by itself; see the log in the data folder")
	case <-p.stack.Redis.Done():
		err = errors.New("redis-server has ended by itself; see redis.log in the data folder")
	}
	return errors.Join(err, p.stop())
}

// watch notes when a part ends although nobody stopped it.
func (p *process) watch(name string, done <-chan struct{}, why func() error) {
	go func() {
		<-done
		if err := why(); err != nil {
			select {
			case p.failed <- fmt.Errorf("%s: %w", name, err):
			default: // the first ones told enough
			}
		}
	}()
}

func (p *process) startTelemetry(ctx context.Context) error {
	path, err := filepath.Abs(filepath.Join(p.o.Data, "parley.log"))
	if err != nil {
		return fmt.Errorf("resolve the data folder: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	p.onStop(file.Close)
	var out io.Writer = file
	if p.o.Verbose {
		out = io.MultiWriter(file, os.Stderr)
	}
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "parley", Version: "dev", LogOutput: out, OTLPEndpoint: os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"), SampleRatio: sampleRatio(p.o),
		Reports: telemetry.Reports{DSN: os.Getenv("SENTRY_DSN"), Environment: "development"},
	})
	if err != nil {
		return err
	}
	p.onStop(func() error {
		flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		return tel.Shutdown(flushing)
	})
	p.log = tel.Log
	p.admin = admin.New(tel.Log, tel.MetricsHandler())
	p.admin.Handle(telemetry.TracesPath, tel.TracesHandler())
	p.ready.Log, p.ready.Data = path, filepath.Dir(path)
	return nil
}

// sampleRatio is that of production: what is not traced costs nothing, and what is
// measured here is near to what a deployment does.
func sampleRatio(o Options) float64 {
	if o.Trace {
		return 1
	}
	return 0.01
}

func (p *process) startStack(ctx context.Context) error {
	var err error
	p.stack, err = stack.Start(ctx, stack.Options{
		Dir: p.o.Data, Logger: p.log,
		Postgres: &stack.PostgresOptions{Install: true},
		NATS:     &stack.NATSOptions{Outsider: p.loopback.End},
		Redis:    &stack.RedisOptions{Installed: true},
		Mail:     &stack.MailOptions{},
	})
	if err != nil {
		return err
	}
	p.onStop(p.stack.Stop)
	p.ready.Endpoints = p.stack.Endpoints()
	//nolint:contextcheck // the client ends by Close
	p.redis, err = cache.Open(p.stack.Redis.URL, "parley")
	if err != nil {
		return err
	}
	p.onStop(func() error { p.redis.Close(); return nil })
	return nil
}

func (p *process) startAdmin(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", p.o.AdminListen)
	if err != nil {
		return fmt.Errorf("listen for the admin port (another one by --admin-listen): %w", err)
	}
	p.ready.Admin = "http://" + l.Addr().String()
	p.ready.Mails = p.ready.Admin + mailbox.Path
	serving, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.admin.Serve(serving, l) }()
	p.onStop(func() error { stop(); return <-done })
	return nil
}

// connect opens a connection to NATS for one part, as it would have alone.
func (p *process) connect(ctx context.Context, name string) (*event.Bus, error) {
	bus, err := event.Connect(ctx, event.Config{InProcess: p.stack.NATS.InProcess(), Name: name}, p.log.With("service", name))
	if err != nil {
		return nil, err
	}
	p.onStop(func() error { bus.Close(); return nil })
	return bus, nil
}

func (p *process) startService(ctx context.Context, def service.Definition) error {
	bus, err := p.connect(ctx, def.Name)
	if err != nil {
		return err
	}
	deps, err := p.dependencies(ctx, def.Name, bus)
	if err != nil {
		return err
	}
	running, err := service.Start(ctx, def, deps)
	if err != nil {
		return err
	}
	if err := deps.Settings.Unknown(); err != nil {
		return errors.Join(err, running.Stop())
	}
	p.onStop(running.Stop)
	p.watch(def.Name, running.Done(), running.Wait)
	p.services.Register(def.Name, running.Handler())
	return nil
}

// awaitReady waits until every check of the admin port is good. The port itself
// says "starting" until the demo accounts are there as well.
func (p *process) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		checks := p.admin.Status(ctx).Checks
		if !slices.ContainsFunc(slices.Collect(maps.Values(checks)), func(result string) bool { return result != "ok" }) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %v", checks)
		}
	}
}
