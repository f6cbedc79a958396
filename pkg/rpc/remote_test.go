package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// node is one plain h2c server that says its name.
type node struct {
	name  string
	addr  string
	srv   *http.Server
	conns atomic.Int32 // that were ever opened
	calls atomic.Int32
	deaf  atomic.Bool // reads no body
	block chan struct{}
}

func startNode(t *testing.T, name, addr string) *node {
	t.Helper()
	n := &node{name: name, block: make(chan struct{})}
	ln, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	n.addr = ln.Addr().String()
	n.srv = &http.Server{
		ReadHeaderTimeout: time.Second, Protocols: new(http.Protocols),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				n.conns.Add(1)
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.calls.Add(1)
			if n.deaf.Load() {
				<-r.Context().Done()
				return
			}
			body, _ := io.ReadAll(r.Body)
			if r.URL.Path == "/wait" {
				<-n.block
			}
			_, _ = io.WriteString(w, n.name+string(body))
		}),
	}
	n.srv.Protocols.SetUnencryptedHTTP2(true)
	serving := make(chan struct{})
	n.srv.BaseContext = func(net.Listener) context.Context { close(serving); return context.WithoutCancel(t.Context()) }
	done := make(chan struct{})
	go func() { defer close(done); _ = n.srv.Serve(ln) }()
	t.Cleanup(func() { _ = n.srv.Close(); <-done })
	<-serving // to close a server that does not serve yet leaves its socket open for a moment
	return n
}

// names is a resolver for the tests: every host has these addresses.
type names struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	looks int
}

func (n *names) set(err error, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err, n.addrs = err, nil
	for _, a := range addrs {
		n.addrs = append(n.addrs, netip.MustParseAddr(a))
	}
}

func (n *names) lookup(context.Context, string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.looks++
	return n.addrs, n.err
}

func (n *names) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.looks
}

func dialNodes(t *testing.T, address string, cfg rpc.RemoteConfig) rpc.Backend {
	t.Helper()
	d, err := rpc.Remote(map[string]string{"x": address}, cfg)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d.Backend("x")
}

func ask(ctx context.Context, b rpc.Backend, path string, body io.Reader) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL+path, body)
	if err != nil {
		return "", err
	}
	res, err := b.HTTP.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	return string(answer), err
}

// tally asks n times and counts who answered; every answer must be good.
func tally(t *testing.T, b rpc.Backend, n int) map[string]int {
	t.Helper()
	out := make(map[string]int)
	for range n {
		who, err := ask(t.Context(), b, "/", strings.NewReader("!"))
		require.NoError(t, err)
		out[strings.TrimSuffix(who, "!")]++
	}
	return out
}

// kill ends a node as a crash does. A call that was written to its connection in
// that moment may fail, for it may have been processed; no later one.
func kill(t *testing.T, b rpc.Backend, n *node) {
	t.Helper()
	require.NoError(t, n.srv.Close())
	for range 4 {
		if _, err := ask(t.Context(), b, "/", strings.NewReader("!")); err != nil {
			return
		}
	}
}

// threeNodes listen on one port of three loopback addresses, as the pods behind
// a headless name do.
func threeNodes(t *testing.T) (a, b, c *node, port string) {
	t.Helper()
	a = startNode(t, "a", "127.0.0.1:0")
	_, port, err := net.SplitHostPort(a.addr)
	require.NoError(t, err)
	return a, startNode(t, "b", "127.0.0.2:"+port), startNode(t, "c", "127.0.0.3:"+port), port
}

func TestBalancerSpreadsAndFollowsTheName(t *testing.T) {
	t.Parallel()
	_, b, _, port := threeNodes(t)
	dns := &names{}
	dns.set(nil, "127.0.0.1", "127.0.0.2")
	backend := dialNodes(t, "http://pods.test:"+port, rpc.RemoteConfig{ResolveEvery: 20 * time.Millisecond, Lookup: dns.lookup})

	require.Equal(t, map[string]int{"a": 10, "b": 10}, tally(t, backend, 20))

	kill(t, backend, b)
	require.Equal(t, map[string]int{"a": 20}, tally(t, backend, 20), "one died: the others get its calls")

	dns.set(nil, "127.0.0.1", "127.0.0.2", "127.0.0.3")
	require.Eventually(t, func() bool { return tally(t, backend, 4)["c"] > 0 }, 5*time.Second, 5*time.Millisecond,
		"a new address gets calls")

	dns.set(errors.New("resolver is away"))
	looks := dns.count()
	require.Eventually(t, func() bool { return dns.count() > looks+1 }, 5*time.Second, time.Millisecond)
	require.Positive(t, tally(t, backend, 20)["c"], "without a resolver the known addresses stay")

	dns.set(nil, "127.0.0.3")
	require.Eventually(t, func() bool { return tally(t, backend, 6)["c"] == 6 }, 5*time.Second, 5*time.Millisecond,
		"addresses that are gone get no calls")
}

func TestBalancerTakesBackWhoReturns(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, "a", "127.0.0.1:0"), startNode(t, "b", "127.0.0.1:0")
	backend := dialNodes(t, "http://"+a.addr+", http://"+b.addr, rpc.RemoteConfig{})
	require.Equal(t, map[string]int{"a": 5, "b": 5}, tally(t, backend, 10))
	kill(t, backend, b)
	require.Equal(t, map[string]int{"a": 10}, tally(t, backend, 10))
	again := startNode(t, "b", b.addr)
	require.Eventually(t, func() bool { return tally(t, backend, 2)["b"] > 0 }, 10*time.Second, 20*time.Millisecond)
	require.Positive(t, again.calls.Load())
}

func TestBalancerSaysWhenNobodyIsThere(t *testing.T) {
	t.Parallel()
	a := startNode(t, "a", "127.0.0.1:0")
	backend := dialNodes(t, "http://"+a.addr, rpc.RemoteConfig{})
	require.NoError(t, a.srv.Close())
	_, err := ask(t.Context(), backend, "/", strings.NewReader("x"))
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	require.Equal(t, errorv1.Reason_REASON_UNAVAILABLE, rpc.ReasonOf(err))

	d, err := rpc.Remote(nil, rpc.RemoteConfig{})
	require.NoError(t, err)
	_, err = ask(t.Context(), d.Backend("unheard"), "/", nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	_, err = rpc.NewRawClient(d.Backend("unheard"), "/x", "proto").Call(t.Context(), nil, nil)
	require.Equal(t, errorv1.Reason_REASON_UNAVAILABLE, rpc.ReasonOf(err))
}

func TestBalancerNeverRepeatsWhatWasSent(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, "a", "127.0.0.1:0"), startNode(t, "b", "127.0.0.1:0")
	backend := dialNodes(t, "http://"+a.addr+",http://"+b.addr, rpc.RemoteConfig{})
	result := make(chan error, 1)
	go func() {
		_, err := ask(t.Context(), backend, "/wait", io.NopCloser(strings.NewReader("x")))
		result <- err
	}()
	var hit *node
	require.Eventually(t, func() bool {
		for _, n := range []*node{a, b} {
			if n.calls.Load() == 1 {
				hit = n
			}
		}
		return hit != nil
	}, 5*time.Second, time.Millisecond)
	require.NoError(t, hit.srv.Close()) // the call is on its way and its connection breaks
	close(hit.block)
	require.Error(t, <-result)
	require.EqualValues(t, 1, a.calls.Load()+b.calls.Load())
}

func TestBalancerReplacesOldConnections(t *testing.T) {
	t.Parallel()
	a := startNode(t, "a", "127.0.0.1:0")
	backend := dialNodes(t, "http://"+a.addr, rpc.RemoteConfig{MaxConnAge: 30 * time.Millisecond})
	waiting := make(chan error, 1)
	go func() {
		_, err := ask(t.Context(), backend, "/wait", strings.NewReader("x"))
		waiting <- err
	}()
	require.Eventually(t, func() bool {
		tally(t, backend, 1)
		return a.conns.Load() >= 3
	}, 5*time.Second, 5*time.Millisecond)
	close(a.block)
	require.NoError(t, <-waiting, "a call on an old connection ends in peace")
}

func TestRemoteRefusesBadAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "user:8080", "ftp://user:1", "http://user:1/path", "http://:80", "http://user:80,nonsense", "http://a:b@user:80"} {
		_, err := rpc.Remote(map[string]string{"user": address}, rpc.RemoteConfig{})
		require.ErrorContains(t, err, "user", address)
	}
}
