package system

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
)

// replica says how often a program runs.
type replica struct {
	program string
	names   []string
}

// replicas are the programs in the order of their start.
func replicas(o Options) []replica {
	named := func(program string, n int) replica {
		r := replica{program: program}
		for i := range n {
			r.names = append(r.names, fmt.Sprintf("%s-%d", program, i+1))
		}
		return r
	}
	return []replica{
		{"auth", []string{"auth"}},
		{"user", []string{"user"}},
		named("messaging", cmp.Or(o.Messagings, 2)),
		named("gateway", cmp.Or(o.Gateways, 2)),
	}
}

// plan is what the processes of a system must know of each other.
type plan struct {
	dir       string
	databases map[string]string   // service → URL
	bouncer   *testkit.Bouncer    // nil: the services reach PostgreSQL directly
	listen    map[string]string   // process → host:port
	urls      map[string][]string // program → base URLs of its processes
	keys      map[string]ed25519.PrivateKey
	secrets   []string // the variables of services that hold secrets
}

// startSeparate starts the servers, provisions and migrates the database, and
// starts every program.
func (s *System) startSeparate(o Options) {
	s.t.Helper()
	var servers sync.WaitGroup
	servers.Go(func() { s.Postgres = testkit.PrivatePostgres(s.t) })
	servers.Go(func() { s.NATS = testkit.PrivateNATS(s.t) })
	servers.Go(func() { s.Redis = testkit.PrivateRedis(s.t) })
	servers.Wait()
	if s.Postgres == nil || s.NATS == nil || s.Redis == nil {
		s.t.FailNow()
	}
	p := s.plan(o)
	for _, r := range replicas(o) {
		for _, name := range r.names {
			s.processes = append(s.processes, s.prepare(p, r.program, name, o))
		}
	}
	s.migrate()
	for _, process := range s.processes {
		process.Launch()
	}
	for _, process := range s.processes {
		process.AwaitReady()
	}
}

func (s *System) plan(o Options) *plan {
	p := &plan{
		dir: folder(s.t), databases: map[string]string{}, listen: map[string]string{},
		urls: map[string][]string{}, keys: map[string]ed25519.PrivateKey{},
	}
	database := s.Postgres.NewDatabase(s.t)
	programs := replicas(o)
	for _, r := range programs {
		for _, name := range r.names {
			p.listen[name] = address(s.t)
			p.urls[r.program] = append(p.urls[r.program], "http://"+p.listen[name])
		}
		if r.program != "gateway" {
			p.keys[r.program] = ed25519.NewKeyFromSeed(random(ed25519.SeedSize))
			p.databases[r.program] = provision(s.t, database.AdminURL(), r.program)
		}
	}
	for _, name := range []string{keyEncryptionKey, "REFRESH_SECRET", "PASSWORD_PEPPER"} {
		p.secrets = append(p.secrets, variable("auth", name, base64.StdEncoding.EncodeToString(random(32))))
	}
	s.databases = p.databases
	s.seeding = []string{p.databases["auth"], p.secrets[0]}
	for _, name := range programs[len(programs)-1].names {
		s.Gateways = append(s.Gateways, p.listen[name])
	}
	return p
}

// prepare makes one process with its variables.
func (s *System) prepare(p *plan, name, replica string, o Options) *Process {
	s.t.Helper()
	admin := address(s.t)
	bus := s.NATS.URL
	env := slices.Clone(p.secrets)
	switch {
	case name == "gateway" && o.Straight:
	case name == "gateway":
		way := NewProxy(s.t, strings.TrimPrefix(bus, "nats://"))
		s.Bus = append(s.Bus, way)
		bus = "nats://" + way.Addr
	default:
		env = append(env, p.database(name)...)
		env = append(env,
			variable(name, "SERVICE_KEY", base64.StdEncoding.EncodeToString(p.keys[name].Seed())),
			variable(name, "SERVICE_PUBLIC_KEYS", p.publicKeys()),
			variable(name, "SERVICES", strings.Join(domains, ",")),
		)
	}
	env = append(env,
		variable(name, "REDIS_URL", s.Redis.URL),
		variable(name, "NATS_URL", bus),
		variable(name, "LISTEN", p.listen[replica]),
		variable(name, "ADMIN_LISTEN", admin),
		variable(name, "JWKS_URL", p.urls["auth"][0]+"/.well-known/jwks.json"),
		variable(name, "BACKENDS", p.backends()),
		variable(name, "DRAIN_DELAY", "200ms"),
		variable(name, "LOG_FORMAT", "text"),
	)
	process := newProcess(s.t, p.dir, replica, program(s.t, name), nil, of(name, append(env, tuning(o)...)), admin)
	process.pin(o.CPU)
	return process
}

// database are the variables with a service's way to PostgreSQL, as
// deploy/README.md tells to set them.
func (p *plan) database(name string) []string {
	direct := p.databases[name]
	if p.bouncer == nil {
		return []string{variable(name, "DATABASE_URL", direct)}
	}
	return []string{
		variable(name, "DATABASE_URL", p.bouncer.URL(direct)),
		variable(name, "MIGRATE_DATABASE_URL", direct),
		variable(name, "DATABASE_EXEC_MODE", postgres.ExecModeCacheDescribe),
	}
}

// backends is the variable with the addresses of all services: services are
// separated by commas, replicas of one by semicolons.
func (p *plan) backends() string {
	var list []string
	for _, name := range domains {
		list = append(list, name+"="+strings.Join(p.urls[name], ";"))
	}
	return strings.Join(list, ",")
}

func (p *plan) publicKeys() string {
	var list []string
	for _, name := range domains {
		public, _ := p.keys[name].Public().(ed25519.PublicKey)
		list = append(list, name+"="+base64.StdEncoding.EncodeToString(public))
	}
	return strings.Join(list, ",")
}

// migrate runs the migrations of every service, as a release does before it
// starts the new processes.
func (s *System) migrate() {
	s.t.Helper()
	for _, name := range []string{"auth", "user", "messaging-1"} {
		s.Process(name).Run("migrate")
	}
}

// provision makes a service's role and schema, and returns the role's URL.
func provision(t testing.TB, adminURL, service string) string {
	t.Helper()
	ctx := t.Context()
	const password = "e2e"
	u, err := url.Parse(adminURL)
	if err == nil {
		err = func() error {
			conn, err := pgx.Connect(ctx, adminURL)
			if err != nil {
				return err
			}
			return errors.Join(postgres.EnsureService(ctx, conn, service, password), conn.Close(context.WithoutCancel(ctx)))
		}()
	}
	if err != nil {
		t.Fatalf("provision %s: %v", service, err)
	}
	u.User = url.UserPassword(postgres.RoleName(service), password)
	return u.String()
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, by its documentation
	return b
}
