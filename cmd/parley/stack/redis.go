package stack

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// RedisOptions configures the Redis protocol server.
type RedisOptions struct {
	// Port on 127.0.0.1; 0 picks a free one.
	Port int
	// Installed runs the redis-server of this machine, as a child, if it has one and the kernel ends it with this
	// process (Linux): it does with a tenth of the CPU what the server inside this process does, and offers all that
	// production has. Only the other one has more than 16 databases.
	Installed bool
}

// Redis is a running Redis protocol server. It keeps nothing on disk.
type Redis struct {
	// Addr is host:port.
	Addr string
	// URL is that of a client, with what this server cannot do.
	URL string

	child    *process        // a redis-server, or
	embedded *embeddedServer // one inside this process
}

func startRedis(ctx context.Context, dir string, o RedisOptions, log *slog.Logger) (*Redis, error) {
	if o.Installed {
		if program := findRedis(ctx); program != "" && childrenEndWithUs {
			return startRedisServer(ctx, program, filepath.Join(dir, redisLog), o.Port)
		}
		log.InfoContext(ctx, "no redis-server here: the Redis protocol is served by this process, which is slower")
	}
	return startEmbedded(o.Port)
}

// PID is the process id of a redis-server, 0 if the server is in this process.
func (r *Redis) PID() int {
	if r.child == nil {
		return 0
	}
	return r.child.pid
}

// Done is closed when a redis-server has ended, whoever ended it; nil if the server is in this process.
func (r *Redis) Done() <-chan struct{} {
	if r.child == nil {
		return nil
	}
	return r.child.done
}

// stop is safe to call twice.
func (r *Redis) stop() error {
	if r.child != nil {
		return r.child.stop("redis-server")
	}
	r.embedded.stop()
	return nil
}

// ttlStep is how often time passes for keys with a TTL; miniredis has no clock of its own. It looks at every
// key then: with many of them, time passes as often as costs a hundredth of a CPU.
const ttlStep = 50 * time.Millisecond

// embeddedServer speaks RESP2 and has no client-side caching.
type embeddedServer struct {
	server  *miniredis.Miniredis
	quit    chan struct{}
	stopped chan struct{}
}

func startEmbedded(port int) (*Redis, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
		return nil, fmt.Errorf("start the Redis protocol server: %w", err)
	}
	e := &embeddedServer{server: m, quit: make(chan struct{}), stopped: make(chan struct{})}
	go e.age()
	return &Redis{Addr: m.Addr(), URL: "redis://" + m.Addr() + "/0?protocol=2&client_cache=0", embedded: e}, nil
}

// age moves the server's time forward with the real one, so that TTLs run out.
func (e *embeddedServer) age() {
	defer close(e.stopped)
	step := time.NewTimer(ttlStep)
	defer step.Stop()
	last := time.Now()
	for {
		select {
		case <-e.quit:
			return
		case now := <-step.C:
			e.server.FastForward(now.Sub(last))
			last = now
			step.Reset(max(ttlStep, 100*time.Since(now)))
		}
	}
}

func (e *embeddedServer) stop() {
	select {
	case <-e.stopped:
		return
	default:
	}
	close(e.quit)
	<-e.stopped
	e.server.Close()
}
