package service

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/lifecycle"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/realtime"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
)

// Deps is what a service needs from the process that it runs in. Nothing in it is
// closed by the service. Fields without "may be" have to be set.
type Deps struct {
	// Services are the names of all services of the deployment; may be empty.
	Services []string
	// Database is opened with the service's own role.
	Database postgres.Config
	// MigrateURL, when set, has the schema brought up to date before anything
	// else: a direct connection with the service's role. In production the
	// migrate command does it.
	MigrateURL string
	Bus        *event.Bus
	// Loopback carries pushes to a gateway in the same process; nil unless NATS runs
	// in it as well.
	Loopback *realtime.Loopback
	// Redis may be nil.
	Redis rueidis.Client
	// Dialer finds the other services.
	Dialer rpc.Dialer

	// UserKeys are the keys of people's tokens, which are for Issuer and Audience
	// and live no longer than TokenLife.
	UserKeys  token.KeySource
	Issuer    string
	Audience  string
	TokenLife time.Duration
	// Key signs this service's calls; Callers are the keys of those who may call.
	Key     ed25519.PrivateKey
	Callers map[string]ed25519.PublicKey

	Clock clock.Clock
	Log   *slog.Logger
	// Admin shows the readiness of the process; services share it.
	Admin *admin.Server
	// Settings are the service's own settings; may be nil: all have defaults.
	Settings *config.Source

	// Listener is where RPCs are served over the network, and may be nil. The
	// service closes it.
	Listener net.Listener
	// DrainDelay and StopTimeout: see Config. A zero StopTimeout is 15 s.
	DrainDelay  time.Duration
	StopTimeout time.Duration
}

// Running is a service that was started.
type Running struct {
	name    string
	handler http.Handler
	addr    net.Addr
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // set before done is closed
}

// Handler serves the RPCs of the service to callers in the same process.
func (r *Running) Handler() http.Handler { return r.handler }

// Addr is where the service listens, nil when it is only called in process.
func (r *Running) Addr() net.Addr { return r.addr }

// Done is closed when the service has ended.
func (r *Running) Done() <-chan struct{} { return r.done }

// Wait returns, when the service has ended, why: nil if it was told to.
func (r *Running) Wait() error {
	<-r.done
	return r.err
}

// Stop ends the service as the end of the context of Start does, and waits.
func (r *Running) Stop() error {
	r.cancel()
	return r.Wait()
}

// Start sets the service up and runs it until ctx ends, Stop is called or a part
// of it fails. When it returns without error the service can be called through
// Handler and, if there is one, the listener. It does not wait for dependencies
// that are away: readiness tells. On an error nothing is left running.
func Start(ctx context.Context, def Definition, deps Deps) (*Running, error) {
	if err := errors.Join(def.check(), deps.check()); err != nil {
		return nil, errors.Join(err, closeListener(deps.Listener))
	}
	ctx, cancel := context.WithCancel(ctx)
	run, err := prepare(ctx, def, deps)
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("start %s: %w", def.Name, err), closeListener(deps.Listener))
	}
	r := &Running{name: def.Name, handler: run.rt.server.Handler(), cancel: cancel, done: make(chan struct{})}
	if deps.Listener != nil {
		r.addr = deps.Listener.Addr()
	}
	group := run.group()
	go func() {
		defer close(r.done)
		defer cancel()
		r.err = group.Run(ctx)
	}()
	run.rt.Log.InfoContext(ctx, "started", "address", fmt.Sprint(r.addr))
	return r, nil
}

// starting is a service between its setup and its run.
type starting struct {
	deps      Deps
	rt        *Runtime
	revoked   *token.Revocations
	listeners *event.Listeners
	jobs      *job.Runner

	partitions  sync.Mutex
	partitioned bool
}

// prepare makes everything and starts nothing. Only the pool needs closing.
func prepare(ctx context.Context, def Definition, deps Deps) (_ *starting, err error) {
	log := deps.Log.With("service", def.Name)
	if deps.MigrateURL != "" {
		if err := postgres.Migrate(ctx, deps.MigrateURL, def.Name, def.Migrations); err != nil {
			return nil, fmt.Errorf("migrate: %w", err)
		}
	}
	signer, err := token.NewServiceSigner(def.Name, deps.Key, deps.Clock)
	if err != nil {
		return nil, err
	}
	pool, err := postgres.Open(ctx, deps.Database)
	if err != nil {
		return nil, err
	}
	settings := deps.Settings
	if settings == nil {
		settings = config.NewSource(Prefix(def.Name), nil)
	}
	revoked := token.NewRevocations(deps.Clock, deps.TokenLife)
	rt := &Runtime{
		Name: def.Name, Services: slices.Clone(deps.Services), DB: pool, Bus: deps.Bus, Redis: deps.Redis, Clock: deps.Clock, Log: log,
		Realtime: realtime.New(deps.Bus.Conn(), deps.Loopback, log),
		database: deps.Database, settings: settings, dialer: deps.Dialer, signer: signer,
	}
	defer func() {
		if err != nil {
			rt.closePools()
		}
	}()
	// The relay runs only once Setup has registered who is to be told.
	rt.Outbox = outbox.New(pool, deps.Bus, def.Name, deps.Clock, log, outbox.WithRecovered(rt.tell))
	rt.server = rpc.NewServer(rpc.Config{
		Service: def.Name, Log: log, DrainGrace: deps.stopTimeout(),
		Users:    token.NewVerifier(deps.UserKeys, revoked, deps.Clock, deps.Issuer, deps.Audience),
		Services: token.NewServiceVerifier(def.Name, deps.Callers, deps.Clock),
	})
	if err := def.Setup(ctx, rt); err != nil {
		return nil, err
	}
	if err := rt.seal(); err != nil {
		return nil, err
	}
	s := &starting{deps: deps, rt: rt, revoked: revoked}
	if err := s.wire(); err != nil {
		return nil, err
	}
	s.prepareTables(ctx)
	return s, nil
}

func (d Deps) stopTimeout() time.Duration {
	if d.StopTimeout <= 0 {
		return 15 * time.Second
	}
	return d.StopTimeout
}

// check returns an error that names what is missing.
func (d Deps) check() error {
	var missing []error
	for name, absent := range map[string]bool{
		"Database.URL": d.Database.URL == "", "Bus": d.Bus == nil, "Dialer": d.Dialer == nil, "UserKeys": d.UserKeys == nil,
		"Issuer": d.Issuer == "", "Audience": d.Audience == "", "TokenLife": d.TokenLife <= 0, "Key": d.Key == nil,
		"Clock": d.Clock == nil, "Log": d.Log == nil, "Admin": d.Admin == nil,
	} {
		if absent {
			missing = append(missing, fmt.Errorf("service dependency %s is not set", name))
		}
	}
	return errors.Join(missing...)
}

func closeListener(l net.Listener) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// group lays out what runs and when it ends. This function and the phases of
// pkg/lifecycle are the whole order of the shutdown.
func (s *starting) group() *lifecycle.Group {
	rt, deps := s.rt, s.deps
	// The server cancels calls that outlast the grace; give it time to do so.
	timeout := deps.stopTimeout() + 3*time.Second
	g := lifecycle.New(rt.Log, lifecycle.DrainDelay(deps.DrainDelay), lifecycle.PhaseTimeout(timeout))
	g.OnDrain(deps.Admin.Drain)
	s.addChecks()

	if deps.Listener != nil {
		g.Add(lifecycle.Intake, "rpc server", func(ctx context.Context) error { return rt.server.Serve(ctx, deps.Listener) })
	}
	// Callers in the same process; over the network nobody is left by now.
	g.OnStop(lifecycle.Intake, "rpc server", rt.server.Drain)

	g.Add(lifecycle.Listen, "revocations", s.followRevocations)
	if len(rt.listeners) > 0 {
		g.Add(lifecycle.Listen, "listeners", s.runListeners)
	}
	g.Add(lifecycle.Listen, "jobs", s.runJobs)
	for _, t := range rt.tasks {
		g.Add(t.phase, t.name, t.run)
	}
	g.Add(lifecycle.Relay, "outbox", rt.Outbox.Run)
	g.Add(lifecycle.Relay, "metrics", s.measure)
	g.OnStop(lifecycle.Store, "database pool", func(ctx context.Context) error { return awaitPools(ctx, rt) })
	return g
}

// awaitPools closes the pools, and waits for borrowed connections as long as ctx allows.
func awaitPools(ctx context.Context, rt *Runtime) error {
	closed := make(chan struct{})
	go func() {
		rt.closePools()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		var used int32
		for _, pool := range rt.pools() {
			used += pool.Stat().AcquiredConns()
		}
		return fmt.Errorf("%d connections are still in use: %w", used, ctx.Err())
	}
}
