package servicetest

import (
	"sync"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
)

// dialer leads to services over the network where they listen, and otherwise, as
// for stubs, to handlers in the process.
type dialer struct {
	local *rpc.InProcess

	mu   sync.Mutex
	urls map[string]string
}

func newDialer() *dialer { return &dialer{local: rpc.NewInProcess(), urls: map[string]string{}} }

// remote makes calls by name go to url.
func (d *dialer) remote(name, url string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.urls[name] = url
}

// Backend implements rpc.Dialer.
func (d *dialer) Backend(name string) rpc.Backend {
	d.mu.Lock()
	url, ok := d.urls[name]
	d.mu.Unlock()
	if !ok {
		return d.local.Backend(name)
	}
	return rpc.Remote(map[string]string{name: url}).Backend(name)
}

// add makes a started service reachable by its name, and returns the way to just
// this replica.
func (d *dialer) add(name string, running *service.Running) rpc.Backend {
	if addr := running.Addr(); addr != nil {
		return rpc.Remote(map[string]string{name: "http://" + addr.String()}).Backend(name)
	}
	d.local.Register(name, running.Handler())
	only := rpc.NewInProcess()
	only.Register(name, running.Handler())
	return only.Backend(name)
}
