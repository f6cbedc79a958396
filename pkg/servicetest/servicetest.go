// Package servicetest starts services for their tests: the real ones, on a real
// PostgreSQL, NATS and Redis, called through real clients as whoever the test
// wants to be. Only the clock is a fake.
//
//	h := servicetest.Start(t, servicetest.Options{}, user.Definition())
//	client := userv1connect.NewUserServiceClient(h.Dial("user", h.User(id)))
//	h.Deliver("auth", "user", event.New("account.registered", id, 1, &authv1.AccountRegistered{…}))
//
// Everything belongs to one test and is gone after it; tests run in parallel.
package servicetest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/rueidis"

	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/mailsink"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
)

const (
	// Issuer and Audience are those of people's tokens, as in the defaults of the
	// settings; TokenLife is how long they live.
	Issuer    = "parley"
	Audience  = "parley"
	TokenLife = 15 * time.Minute

	startTimeout = 30 * time.Second
	poll         = 5 * time.Millisecond
)

// Noon is where the clock stands unless Options say otherwise.
var Noon = time.Date(2026, time.March, 16, 12, 0, 0, 0, time.UTC)

// Options say how the services are started. The zero value is a good choice.
type Options struct {
	// H2C has the services called over the network. Otherwise calls stay in the
	// process, as in the all-in-one program.
	H2C bool
	// At is where the fake clock stands; Noon when zero.
	At time.Time
	// Clock replaces the fake clock, for tests of real time.
	Clock clock.Clock
	// Settings are environment variables: "PARLEY_MESSAGING_COMMITTERS=1".
	Settings []string
	// Database, NATSURL and RedisURL replace the shared servers, for tests that kill
	// theirs.
	Database *testkit.Database
	NATSURL  string
	RedisURL string
	// Mail names a service that sends mails: it sends them to Harness.Mail.
	Mail string
	// Log replaces the test's log.
	Log *slog.Logger
	// Services are the names of the deployment's services, for tests in which some
	// of them are stubs; those that are started, when nil.
	Services []string
}

// Harness is the surroundings of the services under test.
type Harness struct {
	// Clock is the clock of all services, and nil if Options brought another.
	Clock *clock.Fake
	// Bus is a connection of the test's own.
	Bus *event.Bus
	// Mail is the mail server of the test, if Options name who sends mails.
	Mail *testkit.Inbox

	t       testing.TB
	opts    Options
	clock   clock.Clock
	log     *slog.Logger
	db      *testkit.Database
	natsURL string
	// redisURL is the key space of the test, which all replicas share.
	redisURL string
	dialer   *dialer
	userKey  token.SigningKey

	mu        sync.Mutex
	keys      map[string]ed25519.PrivateKey
	instances map[string][]*Instance
	pools     map[string]*pgxpool.Pool
}

// Instance is one running replica of a service.
type Instance struct {
	*service.Running
	// Admin shows its readiness.
	Admin *admin.Server

	name    string
	backend rpc.Backend
	close   func()
	stopped sync.Once
	err     error
}

// Start starts the services with databases, streams and keys of their own, and
// waits until they are ready. It fails the test if that does not happen.
func Start(t testing.TB, opts Options, defs ...service.Definition) *Harness {
	t.Helper()
	if opts.Services == nil {
		for _, def := range defs {
			opts.Services = append(opts.Services, def.Name)
		}
	}
	h := newHarness(t, opts)
	h.prepareServers(defs)
	var listeners []net.Listener
	for _, def := range defs {
		// All addresses are known before the first service asks for one.
		listeners = append(listeners, h.listen(def.Name))
	}
	for i, def := range defs {
		h.launch(def, listeners[i])
	}
	for _, def := range defs {
		for _, in := range h.Instances(def.Name) {
			h.waitReady(in)
		}
	}
	return h
}

func newHarness(t testing.TB, opts Options) *Harness {
	t.Helper()
	h := &Harness{
		t: t, opts: opts, clock: opts.Clock, log: opts.Log, dialer: newDialer(t),
		keys: map[string]ed25519.PrivateKey{}, instances: map[string][]*Instance{}, pools: map[string]*pgxpool.Pool{},
	}
	if h.log == nil {
		h.log = testkit.Logger(t)
	}
	if h.clock == nil {
		if opts.At.IsZero() {
			opts.At = Noon
		}
		h.Clock = clock.NewFake(opts.At)
		h.clock = h.Clock
	}
	if opts.Mail != "" {
		h.Mail = testkit.Mail(t, mailsink.Options{Log: h.log, Clock: h.clock})
		h.opts.Settings = append(h.Mail.Settings(opts.Mail), opts.Settings...)
	}
	key := newKey(t)
	h.userKey = token.SigningKey{ID: "servicetest", Private: key}
	return h
}

func (h *Harness) prepareServers(defs []service.Definition) {
	h.t.Helper()
	h.db, h.natsURL = h.opts.Database, h.opts.NATSURL
	if h.db == nil {
		var schemas []testkit.Schema
		for _, def := range defs {
			schemas = append(schemas, testkit.Schema{Service: def.Name, Migrations: def.Migrations})
		}
		h.db = testkit.NewDatabase(h.t, schemas...)
	}
	if h.natsURL == "" {
		h.natsURL = testkit.NATS(h.t).URL
	}
	if h.redisURL = h.opts.RedisURL; h.redisURL == "" {
		h.redisURL = testkit.Redis(h.t) + "?protocol=2&client_cache=0"
	}
	h.Bus = h.connect("servicetest")
	h.t.Cleanup(h.Bus.Close)
}

func (h *Harness) connect(name string) *event.Bus {
	h.t.Helper()
	bus, err := event.Connect(h.ctx(), event.Config{URL: h.natsURL, Name: name}, h.log)
	if err != nil {
		h.t.Fatalf("connect %s to NATS: %v", name, err)
	}
	return bus
}

// Redis returns a connection of the test's own to the Redis of the services.
func (h *Harness) Redis() rueidis.Client {
	h.t.Helper()
	client := h.redis("servicetest")
	h.t.Cleanup(client.Close)
	return client
}

func (h *Harness) redis(name string) rueidis.Client {
	h.t.Helper()
	client, err := cache.Open(h.redisURL, name)
	if err != nil {
		h.t.Fatalf("connect %s to Redis: %v", name, err)
	}
	return client
}

// listen returns nil where calls stay in the process.
func (h *Harness) listen(name string) net.Listener {
	h.t.Helper()
	if !h.opts.H2C {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(h.ctx(), "tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatalf("listen for %s: %v", name, err)
	}
	h.dialer.listens(name, l.Addr().String())
	return l
}

// Add starts one more replica of a service that Start was given, or one again
// that was stopped, and waits until it is ready. Calls by name go to the replica
// that was started last; see DialInstance.
func (h *Harness) Add(def service.Definition) *Instance {
	h.t.Helper()
	in := h.launch(def, h.listen(def.Name))
	h.waitReady(in)
	return in
}

func (h *Harness) launch(def service.Definition, l net.Listener) *Instance {
	h.t.Helper()
	in, err := h.start(def, l)
	if err != nil {
		h.t.Fatal(err)
	}
	h.keep(def.Name, in)
	return in
}

// start starts a replica with connections of its own, as a process has them.
func (h *Harness) start(def service.Definition, l net.Listener) (*Instance, error) {
	h.t.Helper()
	log := h.log.With("instance", len(h.Instances(def.Name)))
	bus, redis := h.connect(def.Name), h.redis(def.Name)
	in := &Instance{name: def.Name, Admin: admin.New(log, nil), close: func() { redis.Close(); bus.Close() }}
	var err error
	in.Running, err = service.Start(h.ctx(), def, service.Deps{
		Services: h.opts.Services,
		Database: postgres.Config{URL: h.db.URL(def.Name), MaxConns: 8, ApplicationName: def.Name},
		Bus:      bus, Redis: redis, Dialer: h.dialer,
		UserKeys: h.userKeys(), Issuer: Issuer, Audience: Audience, TokenLife: TokenLife,
		Key: h.key(def.Name), Callers: h.callers(),
		Clock: h.clock, Log: log, Admin: in.Admin,
		Settings: config.NewSource(service.Prefix(def.Name), h.opts.Settings),
		Listener: l,
	})
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// keep makes a started replica known and has it stopped with the test.
func (h *Harness) keep(name string, in *Instance) {
	h.t.Helper()
	in.Admin.Started()
	in.backend = h.dialer.add(name, in.Running)
	h.mu.Lock()
	h.instances[name] = append(h.instances[name], in)
	h.mu.Unlock()
	h.t.Cleanup(func() {
		if err := in.Stop(); err != nil {
			h.t.Errorf("stop %s: %v", name, err)
		}
	})
}

// Stop ends the replica in the orderly way and closes its connections.
func (in *Instance) Stop() error {
	in.stopped.Do(func() {
		in.err = in.Running.Stop()
		in.close()
	})
	return in.err
}

// Instances returns all replicas of a service that were started, the stopped ones
// too.
func (h *Harness) Instances(name string) []*Instance {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.instances[name])
}

func (h *Harness) waitReady(in *Instance) {
	h.t.Helper()
	var status admin.Status
	h.eventually(startTimeout, func() bool {
		select {
		case <-in.Done():
			h.t.Fatalf("%s ended: %v", in.name, in.Wait())
		default:
		}
		status = in.Admin.Status(h.ctx())
		return status.Ready
	}, func() string { return in.name + " is not ready: " + describe(status) })
}

// DB returns a pool with the role of a service, to look at its tables.
func (h *Harness) DB(name string) *pgxpool.Pool {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if pool, ok := h.pools[name]; ok {
		return pool
	}
	pool, err := postgres.Open(h.ctx(), postgres.Config{URL: h.db.URL(name), MaxConns: 4, ApplicationName: "servicetest"})
	if err != nil {
		h.t.Fatalf("open the database of %s: %v", name, err)
	}
	h.t.Cleanup(pool.Close)
	h.pools[name] = pool
	return pool
}

// Stub answers, in the name of a service that is not under test, with handler: a
// generated one around a fake, or any http.Handler. The callee's checks of tokens
// and rules do not run.
func (h *Harness) Stub(name string, handler http.Handler) { h.dialer.local.Register(name, handler) }

// ctx is a context that outlives the test function, since services are stopped by
// a cleanup.
func (h *Harness) ctx() context.Context { return context.WithoutCancel(h.t.Context()) }

// eventually polls until ok, or fails the test with what says.
func (h *Harness) eventually(limit time.Duration, ok func() bool, says func() string) {
	h.t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			h.t.Fatal(says())
		}
	}
}

func describe(s admin.Status) string {
	why := []error{errors.New(s.Why)}
	for name, result := range s.Checks {
		why = append(why, errors.New(name+": "+result))
	}
	return errors.Join(why...).Error()
}

// StartFails starts one service that is expected to refuse, and returns why.
func StartFails(t testing.TB, opts Options, def service.Definition) error {
	t.Helper()
	h := newHarness(t, opts)
	h.prepareServers([]service.Definition{def})
	in, err := h.start(def, h.listen(def.Name))
	if err == nil {
		h.keep(def.Name, in)
		t.Fatalf("%s has started", def.Name)
	}
	return err
}
