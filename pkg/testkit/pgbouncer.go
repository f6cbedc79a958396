package testkit

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
)

var bouncerProgram = installed{program: "pgbouncer", env: "PARLEY_PGBOUNCER_BIN", ensure: "tools/pgbouncer/ensure"}

// Bouncer is a PgBouncer in transaction mode that belongs to one test: after each transaction a client's next
// one runs on whichever connection to the server is free.
type Bouncer struct {
	t    testing.TB
	port int
}

// bouncerPool is how many connections to the server each role shares: fewer than its service has clients, so
// that they do change places.
const bouncerPool = 4

// PgBouncer starts one before the server of the given URLs, which are those of the roles that may pass.
func PgBouncer(t testing.TB, urls ...string) *Bouncer {
	t.Helper()
	program := bouncerProgram.find(t)
	b := &Bouncer{t: t}
	dir := serverDir(t)
	account, err := notRoot()
	if err != nil {
		t.Fatalf("run PgBouncer: %v", err)
	}
	for range 5 { // another process may be faster to take the port
		if b.port, err = unusedPort(); err != nil {
			break
		}
		var config string
		if config, err = b.configure(dir, urls); err != nil {
			break
		}
		var s *server
		if s, err = launch(dir, program, account, config); err != nil {
			break
		}
		if err = s.await(func() error { return b.reach(urls) }); err == nil {
			t.Cleanup(s.kill)
			return b
		}
		s.kill()
	}
	t.Fatalf("start PgBouncer: %v", err)
	return nil
}

// URL is the way through the bouncer that leads where a direct URL leads.
func (b *Bouncer) URL(direct string) string {
	b.t.Helper()
	u, err := url.Parse(direct)
	if err != nil {
		b.t.Fatalf("parse the URL of the database: %v", err)
	}
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port))
	return u.String()
}

// configure writes the settings and the list of roles, and returns the path of the former.
func (b *Bouncer) configure(dir string, urls []string) (string, error) {
	var users []string
	var server *url.URL
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			return "", fmt.Errorf("parse the URL of the database: %w", err)
		}
		password, _ := u.User.Password()
		users = append(users, fmt.Sprintf("%q %q", u.User.Username(), password))
		server = u
	}
	list, config := filepath.Join(dir, "users.txt"), filepath.Join(dir, "pgbouncer.ini")
	err := os.WriteFile(list, inOrder(users...), 0o644)
	if err != nil {
		return "", fmt.Errorf("write the list of roles: %w", err)
	}
	err = os.WriteFile(config, inOrder(
		"[databases]",
		fmt.Sprintf("* = host=%s port=%s", server.Hostname(), server.Port()),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1", fmt.Sprintf("listen_port = %d", b.port), "unix_socket_dir =",
		"pool_mode = transaction", fmt.Sprintf("default_pool_size = %d", bouncerPool), "max_client_conn = 500",
		"auth_type = scram-sha-256", "auth_file = "+list,
	), 0o644)
	if err != nil {
		return "", fmt.Errorf("write the settings: %w", err)
	}
	return config, nil
}

// reach connects as the first role.
func (b *Bouncer) reach(urls []string) error {
	conn, err := pgx.Connect(b.t.Context(), b.URL(urls[0]))
	if err != nil {
		return err
	}
	return conn.Close(b.t.Context())
}
