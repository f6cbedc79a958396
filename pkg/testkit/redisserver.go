package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/goleak"
)

var redisProgram = installed{program: "redis-server", env: "PARLEY_REDIS_BIN", ensure: "tools/redis/ensure"}

// clusterNodes is how many masters RedisCluster has: the fewest that a cluster takes.
const clusterNodes = 3

// OfClusterClients are goroutines that the client of a Redis Cluster leaves behind, which nobody can end: it closes
// connections to nodes that it has left after five seconds, and looks at the cluster again up to a second after an error.
func OfClusterClients() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"),
	}
}

// RedisCluster starts a Redis Cluster of three masters of the test's own and returns its URL.
func RedisCluster(t testing.TB) string {
	t.Helper()
	dir := serverDir(t)
	nodes := make([]*RedisServer, clusterNodes)
	for i := range nodes {
		nodes[i] = startRedis(t, dir, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
	}
	if err := formCluster(t.Context(), nodes); err != nil {
		t.Fatalf("form the Redis Cluster: %v", err)
	}
	query := make([]string, 0, clusterNodes)
	for _, n := range nodes[1:] {
		query = append(query, "addr="+n.addr())
	}
	return "redis://" + nodes[0].addr() + "?" + strings.Join(query, "&")
}

// RedisServer is a redis-server that belongs to one test. It keeps nothing over a restart.
type RedisServer struct {
	// URL stays the same over restarts.
	URL string

	t             testing.TB
	program, dir  string
	args          []string
	port, busPort int

	mu     sync.Mutex
	server *server // nil while it is down
}

// PrivateRedis starts a redis-server with further arguments for a test that stops, kills or pauses it, or wants the real
// thing. Tests that only talk use Redis.
func PrivateRedis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	return startRedis(t, serverDir(t), args...)
}

// startRedis starts a server in a folder, and kills it after the test.
func startRedis(t testing.TB, dir string, args ...string) *RedisServer {
	t.Helper()
	r := &RedisServer{t: t, program: redisProgram.find(t), dir: dir, args: args}
	var err error
	for range 5 { // another process may be faster to take the port
		if r.port, err = unusedPort(); err == nil {
			r.busPort, err = unusedPort()
		}
		if err == nil {
			err = r.start()
		}
		if err == nil {
			r.URL = "redis://" + r.addr() + "/0"
			t.Cleanup(r.Kill9)
			return r
		}
	}
	t.Fatalf("start redis-server: %v", err)
	return nil
}

// start starts the server on its ports. The caller holds the lock, or is the only one.
func (r *RedisServer) start() error {
	all := append([]string{
		"--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--save", "", "--appendonly", "no", "--dir", r.dir,
		"--cluster-port", strconv.Itoa(r.busPort), "--cluster-config-file", fmt.Sprintf("nodes-%d.conf", r.port),
	}, r.args...)
	s, err := launch(r.dir, r.program, nil, all...)
	if err != nil {
		return err
	}
	if err := s.await(func() error { return r.answersAs(s.cmd.Process.Pid) }); err != nil {
		s.kill()
		return err
	}
	r.server = s
	return nil
}

func (r *RedisServer) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// PID is the process id of the server, 0 while it is down.
func (r *RedisServer) PID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return 0
	}
	return r.server.cmd.Process.Pid
}

// Stop ends the server in order. It does nothing when the server is down.
func (r *RedisServer) Stop() { r.end((*server).stop) }

// Kill9 kills the server with SIGKILL and returns when it has gone. It does nothing when the server is down.
func (r *RedisServer) Kill9() { r.end((*server).kill) }

func (r *RedisServer) end(how func(*server)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		how(r.server)
		r.server = nil
	}
}

// Restart starts the server again, empty and on its port; when it runs, it is stopped first.
func (r *RedisServer) Restart() {
	r.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.start(); err != nil {
		r.t.Errorf("restart redis-server: %v", err)
	}
}

// Pause freezes the server: connections stay open and nothing answers.
func (r *RedisServer) Pause() { r.freeze(syscall.SIGSTOP) }

// Resume ends a Pause.
func (r *RedisServer) Resume() { r.freeze(syscall.SIGCONT) }

func (r *RedisServer) freeze(s syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		r.t.Errorf("redis-server is down, it cannot be paused or resumed")
		return
	}
	if err := signalProcess(r.server.cmd.Process, s); err != nil {
		r.t.Errorf("pause or resume redis-server: %v", err)
	}
}

// answersAs returns an error unless the server on the port is that process, and not another one that was faster to take it.
func (r *RedisServer) answersAs(pid int) error {
	info, err := r.ask(context.Background(), "INFO", "server")
	if err == nil && !strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", pid)) {
		err = fmt.Errorf("another process has port %d", r.port)
	}
	return err
}

// do runs one command on this node and wants no answer.
func (r *RedisServer) do(ctx context.Context, command ...string) error {
	_, err := r.ask(ctx, command...)
	return err
}

// ask runs one command on this node alone.
func (r *RedisServer) ask(ctx context.Context, command ...string) (string, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{r.addr()}, ForceSingleClient: true, DisableCache: true, Dialer: net.Dialer{Timeout: time.Second},
	})
	if c != nil {
		defer c.Close()
	}
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return c.Do(ctx, c.B().Arbitrary(command...).Build()).ToString()
}

// formCluster shares the slots out, has the nodes meet and waits until each sees all of it.
func formCluster(ctx context.Context, nodes []*RedisServer) error {
	const slots = 16384
	for i, n := range nodes {
		from, to := i*slots/len(nodes), (i+1)*slots/len(nodes)-1
		err := errors.Join(
			n.do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)),
			n.do(ctx, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(from), strconv.Itoa(to)),
		)
		if err != nil {
			return err
		}
	}
	for _, n := range nodes[1:] {
		if err := nodes[0].do(ctx, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(n.port), strconv.Itoa(n.busPort)); err != nil {
			return err
		}
	}
	var waiting sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		waiting.Go(func() { errs[i] = n.server.await(func() error { return n.sees(ctx, len(nodes)) }) })
	}
	waiting.Wait()
	return errors.Join(errs...)
}

// sees returns an error unless the node knows a whole cluster of that size.
func (r *RedisServer) sees(ctx context.Context, size int) error {
	info, err := r.ask(ctx, "CLUSTER", "INFO")
	if err != nil {
		return err
	}
	for _, want := range []string{"cluster_state:ok", fmt.Sprintf("cluster_known_nodes:%d", size), fmt.Sprintf("cluster_size:%d", size)} {
		if !strings.Contains(info, want) {
			return fmt.Errorf("the cluster is not whole yet: no %s", want)
		}
	}
	return nil
}
