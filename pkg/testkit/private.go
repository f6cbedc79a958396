package testkit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"
)

// Ports of private servers lie below the range from which kernels hand out ports of their own accord, so that
// no client's socket can take the port while the server is down.
const lowestPort, portCount = 20000, 10000

// private is one server in a child process of its own, on a port and a folder that stay the same over
// restarts. Its methods may be called from any goroutine; failures are reported as errors of the test.
type private struct {
	t    testing.TB
	kind string
	args []string
	dir  string
	port int

	mu    sync.Mutex
	child *child // nil while the server is down
}

// startPrivate starts a server of the kind and ends it after the test, together with its folder.
func startPrivate(t testing.TB, kind string, args ...string) *private {
	t.Helper()
	dir, err := privateDir()
	if err != nil {
		t.Fatalf("make a folder for a private %s: %v", kind, err)
	}
	p := &private{t: t, kind: kind, args: args, dir: dir}
	t.Cleanup(func() {
		p.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the folder of the private %s: %v", kind, err)
		}
	})
	const tries = 5 // another process may be faster to take the port
	for range tries {
		if p.port, err = unusedPort(); err != nil {
			break
		}
		if p.child, err = p.start(); err == nil {
			return p
		}
	}
	t.Fatalf("start a private %s: %v\nRun the tests with `make test`, which builds what they need.", kind, err)
	return nil
}

func (p *private) start() (*child, error) {
	args := append([]string{"--only", p.kind, "--dir", p.dir, "--" + p.kind + "-port", strconv.Itoa(p.port)}, p.args...)
	return startChild(args...)
}

// PID is the process id of the server, 0 while it is down.
func (p *private) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.child == nil:
		return 0
	case p.kind == "postgres":
		return p.child.endpoints.PIDs["postgres"]
	default:
		return p.child.endpoints.PIDs["stack"]
	}
}

// Stop ends the server in order. It does nothing when the server is down.
func (p *private) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end((*child).stop)
}

// Kill9 kills the server's processes with SIGKILL and returns when they have gone. It does nothing when the
// server is down.
func (p *private) Kill9() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(func(c *child) error {
		if postmaster := c.endpoints.PIDs["postgres"]; postmaster != 0 {
			killTree(postmaster)
		}
		_ = c.signal(syscall.SIGKILL)
		return c.reap()
	})
}

// end runs how on the running child, awake. The caller holds the lock.
func (p *private) end(how func(*child) error) {
	c := p.child
	if c == nil {
		return
	}
	p.child = nil
	_ = c.signal(syscall.SIGCONT) // a paused process cannot stop in order
	if err := how(c); err != nil {
		p.t.Errorf("end the private %s: %v", p.kind, err)
	}
}

// Restart starts the server again on its port and its data; when it runs, it is stopped first.
func (p *private) Restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end((*child).stop)
	c, err := p.start()
	if err != nil {
		p.t.Errorf("restart the private %s: %v", p.kind, err)
		return
	}
	p.child = c
}

// wipe stops the server and erases its data; the next Restart begins empty.
func (p *private) wipe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end((*child).stop)
	if err := os.RemoveAll(filepath.Join(p.dir, p.kind)); err != nil {
		p.t.Errorf("erase the data of the private %s: %v", p.kind, err)
	}
}

// freeze sends SIGSTOP or SIGCONT to the process with the server.
func (p *private) freeze(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		p.t.Errorf("the private %s is down, it cannot be paused or resumed", p.kind)
		return
	}
	if err := p.child.signal(s); err != nil {
		p.t.Errorf("pause or resume the private %s: %v", p.kind, err)
	}
}

func (p *private) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

// NATSServer is a NATS server with JetStream that belongs to one test.
type NATSServer struct {
	*private
	// URL stays the same over restarts.
	URL string
}

// PrivateNATS starts a NATS server for a test that stops, kills, pauses or wipes it. Tests that only talk use
// NATS. What JetStream has acknowledged survives Kill9.
func PrivateNATS(t testing.TB) *NATSServer {
	t.Helper()
	p := startPrivate(t, "nats")
	return &NATSServer{private: p, URL: "nats://" + p.address()}
}

// Connect returns a client that is closed after the test.
func (s *NATSServer) Connect(t testing.TB, options ...nats.Option) *nats.Conn {
	t.Helper()
	return connectNATS(t, s.URL, options...)
}

// Pause freezes the server: connections stay open and nothing answers, as when a machine hangs.
func (s *NATSServer) Pause() { s.freeze(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *NATSServer) Resume() { s.freeze(syscall.SIGCONT) }

// Wipe stops the server and erases every stream; Restart brings it back empty.
func (s *NATSServer) Wipe() { s.wipe() }

// PostgresServer is a PostgreSQL server that belongs to one test. It keeps every promise to the disk.
type PostgresServer struct {
	*private
	admin string
}

// PrivatePostgres starts a PostgreSQL server for a test that stops or kills it. It takes about a second;
// tests that only need a database use NewDatabase.
func PrivatePostgres(t testing.TB) *PostgresServer {
	t.Helper()
	p := startPrivate(t, "postgres", "--durable")
	return &PostgresServer{private: p, admin: p.child.endpoints.Postgres}
}

// AdminURL is the superuser's URL of the maintenance database. It stays the same over restarts.
func (s *PostgresServer) AdminURL() string { return s.admin }

// NewDatabase is NewDatabase on this server. The database goes with the server.
func (s *PostgresServer) NewDatabase(t testing.TB, schemas ...Schema) *Database {
	t.Helper()
	d, err := makeDatabase(t, s.admin, schemas)
	if err != nil {
		t.Fatalf("make a database on the private server: %v", err)
	}
	return d
}

// privateDir makes a folder that the user of PostgreSQL can enter, too. Its name and the lock that the
// stack puts into it let a later stack remove it, should this process be killed.
func privateDir() (string, error) {
	dir, err := os.MkdirTemp("", "parley-stack-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

func unusedPort() (int, error) {
	for range 100 {
		port := lowestPort + rand.IntN(portCount)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port from %d to %d", lowestPort, lowestPort+portCount)
}
