// Package system starts the whole product, as its own programs in processes of
// their own, and lets a test break it: kill, pause, restart, cut the network.
//
// It owns the two shapes of the product behind one type: everything in one
// process (`parley dev`), and every service and gateway alone with replicas.
// Invariants: a process keeps its ports over restarts; nothing outlives the test
// binary; a log that tells of a panic or of a data race fails the test. It knows
// the programs only from outside: their arguments, variables, ports and signals.
package system

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleychat/parley/pkg/testkit"
)

// Shape is how the product is cut into processes.
type Shape int

const (
	// OneProcess is `parley dev`: everything in one.
	OneProcess Shape = iota
	// Separate is two gateways, two replicas of messaging, auth and user, each in a
	// process of its own, beside PostgreSQL, NATS and Redis.
	Separate
)

func (s Shape) String() string {
	if s == OneProcess {
		return "OneProcess"
	}
	return "Separate"
}

// Options change a system from its defaults.
type Options struct {
	// IdleInterval is the gateways' advice after how much silence a client syncs.
	// 0: the product's default.
	IdleInterval time.Duration
	// ClockOffset moves the clocks of all processes.
	ClockOffset time.Duration
	// PgBouncer puts one in transaction mode between the services and PostgreSQL;
	// migrations go past it. Separate only.
	PgBouncer bool
	// Env are further variables for every process that knows them.
	Env []string
	// Gateways and Messagings are how many there are where processes are separate; 2 each if 0.
	Gateways, Messagings int
	// Straight leaves out the proxies between gateways and NATS, for measurements: nobody can cut them off.
	Straight bool
	// CPU, if set, is the one that all processes of the product and what they start run on (Linux: taskset).
	CPU string
}

// System is the running product.
type System struct {
	Shape Shape
	// Gateways are the addresses of the gateways, host:port.
	Gateways []string
	// Postgres, NATS and Redis are the servers; nil in one process, which has its own.
	Postgres *testkit.PostgresServer
	NATS     *testkit.NATSServer
	Redis    *testkit.RedisServer
	// Bus holds each gateway's way to NATS, in the order of Gateways; nil in one process.
	Bus []*Proxy

	t         testing.TB
	processes []*Process // in the order of their start
	seeding   []string   // see Seeding
	databases map[string]string
	data      string // see Data
}

// keyEncryptionKey is auth's variable with the key that seals the signing keys.
const keyEncryptionKey = "KEY_ENCRYPTION_KEY"

// Seeding is what `parley seed` needs of a system of separate processes: the URL of auth's database, and the
// variable with the key for its environment.
func (s *System) Seeding() (database, variable string) {
	s.t.Helper()
	if len(s.seeding) == 0 {
		s.t.Fatal("one process tells `parley seed` by its data folder")
	}
	return s.seeding[0], s.seeding[1]
}

// Database is the URL by which a service reaches its schema, with its role, where processes are separate.
func (s *System) Database(service string) string { return s.databases[service] }

// Data is the data folder of a system in one process.
func (s *System) Data() string { return s.data }

// Processes are all of them, in the order of their start.
func (s *System) Processes() []*Process { return s.processes }

// Start starts the product in a shape and waits until all of it is ready. It ends
// after the test.
func Start(t testing.TB, shape Shape, o Options) *System {
	t.Helper()
	s := &System{Shape: shape, t: t}
	if shape == OneProcess {
		s.startOneProcess(o)
	} else {
		s.startSeparate(o)
	}
	return s
}

// Process returns a process by its name: "parley", or "auth", "user",
// "messaging-1", "messaging-2", "gateway-1", "gateway-2".
func (s *System) Process(name string) *Process {
	s.t.Helper()
	i := slices.IndexFunc(s.processes, func(p *Process) bool { return p.Name == name })
	if i < 0 {
		s.t.Fatalf("no process %s in this shape", name)
	}
	return s.processes[i]
}

// GatewayNames are the names of the gateways' processes, in the order of Gateways
// and Bus.
func (s *System) GatewayNames() []string {
	var names []string
	for _, p := range s.processes {
		if strings.HasPrefix(p.Name, "gateway") {
			names = append(names, p.Name)
		}
	}
	return names
}

// AwaitReady waits until every process says that it is ready.
func (s *System) AwaitReady() {
	s.t.Helper()
	for _, p := range s.processes {
		p.AwaitReady()
	}
}

// Restart ends all processes in order, moves their clocks and starts them again.
// Servers and data stay.
func (s *System) Restart(clockOffset time.Duration) {
	s.t.Helper()
	for _, p := range slices.Backward(s.processes) {
		p.Stop()
	}
	for _, p := range s.processes {
		p.SetClock(clockOffset)
		p.Launch()
	}
	s.AwaitReady()
}

// domains are the services, in the order of their start.
var domains = []string{"auth", "user", "messaging"}

// clocks are the variables that move the clocks of all programs.
func clocks(offset time.Duration) []string {
	env := make([]string, 0, len(domains)+1)
	for _, name := range append([]string{"gateway"}, domains...) {
		env = append(env, variable(name, "CLOCK_OFFSET", offset.String()))
	}
	return env
}

// tuning are settings for tests in both shapes: hashing that costs nothing, no
// limits for this machine, and waits of milliseconds where the product spreads
// thousands of clients over seconds.
func tuning(o Options) []string {
	env := []string{
		variable("auth", "REGISTER_LIMIT", "0"),
		variable("auth", "BCRYPT_COST", "4"),
		variable("auth", "INSECURE_PASSWORD_HASHING", "true"),
		variable("user", "DELETION_GRACE", "1s"),
		variable("gateway", "LIMIT_EXEMPT", "127.0.0.0/8"),
		variable("gateway", "SOCKET_FRAME_RATE", "2000"),
		variable("gateway", "SOCKET_FRAME_BURST", "4000"),
		variable("gateway", "SOCKET_RESYNC_WINDOW", "500ms"),
		variable("gateway", "SOCKET_DRAIN_WINDOW", "500ms"),
		variable("gateway", "SOCKET_DRAIN_RECONNECT", "300ms"),
	}
	if o.IdleInterval > 0 {
		env = append(env, variable("gateway", "SOCKET_IDLE_INTERVAL", o.IdleInterval.String()))
	}
	if o.ClockOffset != 0 {
		env = append(env, clocks(o.ClockOffset)...)
	}
	return append(env, o.Env...)
}

func variable(program, name, value string) string {
	return "PARLEY_" + strings.ToUpper(program) + "_" + name + "=" + value
}

// of keeps the variables of one program: a program refuses those that it does not
// know.
func of(program string, env []string) []string {
	var own []string
	prefix := variable(program, "", "")
	prefix = prefix[:len(prefix)-1]
	for _, v := range env {
		if strings.HasPrefix(v, prefix) {
			own = append(own, v)
		}
	}
	return own
}

// folder makes a folder that PostgreSQL's user can enter, and removes it after
// the test.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "parley-e2e-") //nolint:usetesting // t.TempDir lies in a folder that only its owner enters
	if err != nil {
		t.Fatalf("make a folder: %v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatalf("open the folder: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the folder: %v", err)
		}
	})
	return dir
}
