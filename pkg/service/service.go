// Package service starts a domain's service: it makes the runtime that a service
// is handed, and runs what the service registers on it.
//
// A service is a Definition and nothing else. It does not know whether it is
// alone in its process (Main) or one of many in the all-in-one program or in a
// test (Start). Every service has a pool, a database role, an outbox and an RPC
// server of its own, also where they share a process; the connections to NATS and
// Redis belong to whoever calls Start.
//
// Invariants: nothing serves before Setup has returned; what is registered after
// it is an error; everything that runs ends in the order of pkg/lifecycle.
package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgxpool"
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
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// Definition is all that there is to know of a service from outside.
type Definition struct {
	// Name is the domain: lower case, one word. It is the name of the database
	// role and schema, of the event stream, and of the caller in service tokens.
	Name string
	// Migrations holds the numbered .sql files at its root.
	Migrations fs.FS
	// Setup is the wiring: it makes the service from rt and registers handlers,
	// listeners, jobs and workers on rt. It starts nothing by itself. ctx ends
	// when the service is told to stop.
	Setup func(ctx context.Context, rt *Runtime) error
	// Settings is a pointer to the struct that Setup gives to Runtime.Config, or
	// nil. It is only described, never filled.
	Settings any
}

// Runtime is what a service is given. Its fields are set and stay as they are;
// its methods are for Setup only.
type Runtime struct {
	Name string
	// Services are the names of all services of the deployment, this one among
	// them; empty where nobody says. For what concerns every one of them.
	Services []string
	// DB is the service's own pool, with its own role and schema.
	DB     *pgxpool.Pool
	Outbox *outbox.Outbox
	Bus    *event.Bus
	// Redis is nil where none is configured. What it answers can always be had
	// from DB instead.
	Redis    rueidis.Client
	Realtime *realtime.Publisher
	Clock    clock.Clock
	Log      *slog.Logger

	database   postgres.Config
	reserved   []*pgxpool.Pool
	settings   *config.Source
	dialer     rpc.Dialer
	signer     *token.ServiceSigner
	server     *rpc.Server
	listeners  []event.Listener
	jobs       []job.Job
	partitions []postgres.Partitions
	tasks      []task
	recovered  []func(context.Context, []*eventv1.Event)
	checks     []check
	faults     []error
	sealed     bool
}

type task struct {
	phase lifecycle.Phase
	name  string
	run   func(context.Context) error
}

type check struct {
	name string
	need admin.Need
	run  admin.Check
}

// Config fills into, a pointer to a struct with env tags (see pkg/config), from
// the settings of this service: PARLEY_<NAME>_…. The error names each variable
// that is missing or invalid.
func (rt *Runtime) Config(into any) error { return rt.settings.Load(into) }

// Reserve opens a pool of n connections beside DB, for work that always does the same
// and must not wait: a connection that nothing else uses has its statements prepared,
// and what its backend needs stays in the caches. It is closed with DB.
func (rt *Runtime) Reserve(ctx context.Context, n int) (*pgxpool.Pool, error) {
	cfg := rt.database
	cfg.MaxConns = int32(n)
	pool, err := postgres.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	rt.reserved = append(rt.reserved, pool)
	return pool, nil
}

// pools are all that the service has open.
func (rt *Runtime) pools() []*pgxpool.Pool { return append([]*pgxpool.Pool{rt.DB}, rt.reserved...) }

func (rt *Runtime) closePools() {
	for _, pool := range rt.pools() {
		pool.Close()
	}
}

// Options returns the options that every Connect handler of the service takes:
// the one chain of interceptors.
func (rt *Runtime) Options() []connect.HandlerOption { return rt.server.Options() }

// Handle serves an RPC service. It takes what a generated constructor returns:
//
//	rt.Handle(authv1connect.NewAuthServiceHandler(svc, rt.Options()...))
//
// A method without an access option makes the start fail.
func (rt *Runtime) Handle(path string, h http.Handler) {
	if rt.open("handler " + path) {
		rt.fault(rt.server.Handle(path, h))
	}
}

// HandleHTTP serves plain HTTP beside the RPCs, for example a key set. Pattern is
// that of http.ServeMux. No interceptor runs and no caller is known: it is for
// what anybody may read.
func (rt *Runtime) HandleHTTP(pattern string, h http.Handler) {
	if rt.open("handler " + pattern) {
		rt.fault(rt.server.HandleHTTP(pattern, h))
	}
}

// Backend returns the way to another service.
func (rt *Runtime) Backend(service string) rpc.Backend { return rt.dialer.Backend(service) }

// ClientOptions returns the options of a client for another service: the service
// token of this one, the trace, the deadline.
func (rt *Runtime) ClientOptions(service string) []connect.ClientOption {
	return rpc.ClientOptions(rt.signer, service)
}

// Dial returns the arguments of a generated client's constructor:
//
//	userv1connect.NewUserServiceClient(rt.Dial("user"))
func (rt *Runtime) Dial(service string) (connect.HTTPClient, string, connect.ClientOption) {
	b := rt.Backend(service)
	return b.HTTP, b.URL, connect.WithClientOptions(rt.ClientOptions(service)...)
}

// Listen subscribes listeners; see event.On.
func (rt *Runtime) Listen(listeners ...event.Listener) {
	if rt.open("listener") {
		rt.listeners = append(rt.listeners, listeners...)
	}
}

// Job runs j by one replica of the service at a time.
func (rt *Runtime) Job(j job.Job) {
	if rt.open("job " + j.Name) {
		rt.jobs = append(rt.jobs, j)
	}
}

// Partitions has the partitions of a table made before the service is ready, and
// kept up by a job: ahead of time, and dropped when they are old.
func (rt *Runtime) Partitions(parts ...postgres.Partitions) {
	if rt.open("partitions") {
		rt.partitions = append(rt.partitions, parts...)
	}
}

// Go runs a worker in the background while the service lives. Its context ends
// after the RPCs are drained and the listeners have stopped; it then finishes what
// it was handed. Database, outbox and bus are there until it returns.
func (rt *Runtime) Go(name string, run func(ctx context.Context) error) {
	if rt.open("worker " + name) {
		rt.tasks = append(rt.tasks, task{lifecycle.Work, name, run})
	}
}

// Recovered has fn called with the events of this service that another process
// committed and did not live to publish, while they are young: fn repeats what
// that process would have pushed to clients. fn may be called for an event that
// was pushed after all.
func (rt *Runtime) Recovered(fn func(ctx context.Context, events []*eventv1.Event)) {
	if rt.open("recovery") {
		rt.recovered = append(rt.recovered, fn)
	}
}

// Ready makes the readiness of the process depend on check. Do not test other
// services by it, nor what the service can do without for a while.
func (rt *Runtime) Ready(name string, run func(ctx context.Context) error) {
	if rt.open("check " + name) {
		rt.checks = append(rt.checks, check{name, admin.Always, run})
	}
}

// open tells whether something can still be registered and notes a fault if not.
func (rt *Runtime) open(what string) bool {
	if rt.sealed {
		// Nobody reads faults after Setup, so this one is told in the log.
		rt.Log.Error("registered after Setup, and ignored", "what", what)
		return false
	}
	return true
}

func (rt *Runtime) fault(err error) {
	if err != nil {
		rt.faults = append(rt.faults, err)
	}
}

// seal ends Setup and returns what went wrong in it.
func (rt *Runtime) seal() error {
	rt.sealed = true
	rt.fault(rt.settings.Unknown())
	return errors.Join(rt.faults...)
}

// tell calls all that Recovered has registered.
func (rt *Runtime) tell(ctx context.Context, events []*eventv1.Event) {
	for _, fn := range rt.recovered {
		fn(ctx, events)
	}
}

// check returns an error unless d can be started.
func (d Definition) check() error {
	switch {
	case d.Name == "":
		return errors.New("a service has no name")
	case d.Setup == nil:
		return fmt.Errorf("service %s has no Setup", d.Name)
	case d.Migrations == nil:
		return fmt.Errorf("service %s has no migrations", d.Name)
	}
	return nil
}
