package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

var redisProgram = installed{program: "redis-server", env: "PARLEY_REDIS_BIN", ensure: "tools/redis/ensure"}

// RealRedis starts a redis-server of the test's own, with further arguments, and returns its URL: what is tested against the embedded
// server is tested against the real one too.
func RealRedis(t testing.TB, args ...string) string {
	t.Helper()
	return "redis://" + startRedisServer(t, serverDir(t), args...).addr() + "/0"
}

// clusterNodes is how many masters RedisCluster has: the fewest that a cluster takes.
const clusterNodes = 3

// RedisCluster starts a Redis Cluster of three masters of the test's own and returns its URL.
func RedisCluster(t testing.TB) string {
	t.Helper()
	dir := serverDir(t)
	nodes := make([]*redisServer, clusterNodes)
	for i := range nodes {
		nodes[i] = startRedisServer(t, dir, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
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

// redisServer is one redis-server on ports that were free a moment ago.
type redisServer struct {
	*server
	port, busPort int
}

func (r *redisServer) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// startRedisServer starts one that keeps nothing on disk, and kills it after the test.
func startRedisServer(t testing.TB, dir string, args ...string) *redisServer {
	t.Helper()
	program := redisProgram.find(t)
	var err error
	for range 5 { // another process may be faster to take the port
		r := &redisServer{}
		if r.port, err = unusedPort(); err == nil {
			r.busPort, err = unusedPort()
		}
		if err != nil {
			break
		}
		all := append([]string{
			"--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--save", "", "--appendonly", "no", "--dir", dir,
			"--cluster-port", strconv.Itoa(r.busPort), "--cluster-config-file", fmt.Sprintf("nodes-%d.conf", r.port),
		}, args...)
		if r.server, err = launch(dir, program, nil, all...); err != nil {
			break
		}
		err = r.await(func() error { return r.do(t.Context(), "PING") })
		if err == nil {
			t.Cleanup(r.kill)
			return r
		}
		r.kill()
	}
	t.Fatalf("start redis-server: %v", err)
	return nil
}

// do runs one command on this node and wants no answer.
func (r *redisServer) do(ctx context.Context, command ...string) error {
	_, err := r.ask(ctx, command...)
	return err
}

// ask runs one command on this node alone.
func (r *redisServer) ask(ctx context.Context, command ...string) (string, error) {
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
func formCluster(ctx context.Context, nodes []*redisServer) error {
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
		waiting.Go(func() { errs[i] = n.await(func() error { return n.sees(ctx, len(nodes)) }) })
	}
	waiting.Wait()
	return errors.Join(errs...)
}

// sees returns an error unless the node knows a whole cluster of that size.
func (r *redisServer) sees(ctx context.Context, size int) error {
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
