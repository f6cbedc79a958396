package stack

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// ttlStep is how often time passes for keys with a TTL; miniredis has no clock of its own. It looks at every
// key then: with many of them, time passes as often as costs a hundredth of a CPU.
const ttlStep = 50 * time.Millisecond

// RedisOptions configures the Redis protocol server.
type RedisOptions struct {
	// Port on 127.0.0.1; 0 picks a free one.
	Port int
}

// Redis is a running Redis protocol server inside this process. It keeps nothing on disk. Clients must speak
// RESP2 and not use client-side caching.
type Redis struct {
	// Addr is host:port.
	Addr string

	server  *miniredis.Miniredis
	quit    chan struct{}
	stopped chan struct{}
}

func startRedis(o RedisOptions) (*Redis, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port))); err != nil {
		return nil, fmt.Errorf("start the Redis protocol server: %w", err)
	}
	r := &Redis{Addr: m.Addr(), server: m, quit: make(chan struct{}), stopped: make(chan struct{})}
	go r.age()
	return r, nil
}

// age moves the server's time forward with the real one, so that TTLs run out.
func (r *Redis) age() {
	defer close(r.stopped)
	step := time.NewTimer(ttlStep)
	defer step.Stop()
	last := time.Now()
	for {
		select {
		case <-r.quit:
			return
		case now := <-step.C:
			r.server.FastForward(now.Sub(last))
			last = now
			step.Reset(max(ttlStep, 100*time.Since(now)))
		}
	}
}

// stop is safe to call twice.
func (r *Redis) stop() {
	select {
	case <-r.stopped:
		return
	default:
	}
	close(r.quit)
	<-r.stopped
	r.server.Close()
}
