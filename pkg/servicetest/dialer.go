package servicetest

import (
	"sync"
	"testing"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
)

// dialer leads to services over the network where they listen, and otherwise, as
// for stubs, to handlers in the process.
type dialer struct {
	t     testing.TB
	local *rpc.InProcess

	mu     sync.Mutex
	remote map[string]rpc.Backend
}

func newDialer(t testing.TB) *dialer {
	return &dialer{t: t, local: rpc.NewInProcess(), remote: map[string]rpc.Backend{}}
}

// listens makes calls by name go to the replica at addr.
func (d *dialer) listens(name, addr string) {
	backend := d.over(name, addr)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remote[name] = backend
}

// Backend implements rpc.Dialer.
func (d *dialer) Backend(name string) rpc.Backend {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b, ok := d.remote[name]; ok {
		return b
	}
	return d.local.Backend(name)
}

// add makes a started service reachable by its name, and returns the way to just
// this replica.
func (d *dialer) add(name string, running *service.Running) rpc.Backend {
	if addr := running.Addr(); addr != nil {
		return d.over(name, addr.String())
	}
	d.local.Register(name, running.Handler())
	only := rpc.NewInProcess()
	only.Register(name, running.Handler())
	return only.Backend(name)
}

// over is the way to one address. Its connections are closed with the test.
func (d *dialer) over(name, addr string) rpc.Backend {
	d.t.Helper()
	remote, err := rpc.Remote(map[string]string{name: "http://" + addr}, rpc.RemoteConfig{})
	if err != nil {
		d.t.Fatalf("dial %s: %v", name, err)
	}
	d.t.Cleanup(remote.Close)
	return remote.Backend(name)
}
