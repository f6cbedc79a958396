package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// RemoteConfig tunes the balancing client; zero values have the defaults.
type RemoteConfig struct {
	Log *slog.Logger
	// ResolveEvery is how often names are looked up again; 5 s. A failed dial
	// makes it sooner.
	ResolveEvery time.Duration
	// MaxConnAge is the age at which a connection is replaced, give or take a
	// tenth, so that calls spread over new pods; 5 min.
	MaxConnAge time.Duration
	// DialTimeout bounds one attempt to connect; 2 s.
	DialTimeout time.Duration
	// Lookup finds the addresses of a host; the system's resolver if nil.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

func (c RemoteConfig) withDefaults() RemoteConfig {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.ResolveEvery, 5*time.Second)
	setDefault(&c.MaxConnAge, 5*time.Minute)
	setDefault(&c.DialTimeout, 2*time.Second)
	if c.Lookup == nil {
		c.Lookup = systemLookup
	}
	return c
}

// RemoteDialer is the Dialer of services in other processes. Each service has a
// balancer that keeps one HTTP/2 connection per address.
type RemoteDialer struct {
	cfg      RemoteConfig
	backends map[string]*balancer
}

// Remote makes the dialer of services by name. An address is "http://user:8080",
// whose name is looked up for all its addresses (a headless Kubernetes service),
// or a comma separated list of such URLs. It fails on an address it cannot read
// and connects to nothing yet. Close it to stop its resolvers.
func Remote(addresses map[string]string, cfg RemoteConfig) (*RemoteDialer, error) {
	cfg = cfg.withDefaults()
	d := &RemoteDialer{cfg: cfg, backends: make(map[string]*balancer, len(addresses))}
	for service, address := range addresses {
		targets, err := parseTargets(address)
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("backend of %s: %w", service, err)
		}
		d.backends[service] = newBalancer(service, targets, cfg)
	}
	return d, nil
}

// Backend returns the way to a service.
func (d *RemoteDialer) Backend(service string) Backend {
	if b, ok := d.backends[service]; ok {
		return newBackend("http://"+service, b)
	}
	return newBackend("http://"+service, noBackend(service))
}

// Close stops the resolvers and closes idle connections. Calls still running go
// on, new ones fail.
func (d *RemoteDialer) Close() {
	for _, b := range d.backends {
		b.close()
	}
}

// noBackend fails every call: the configuration names no such service.
type noBackend string

func (n noBackend) RoundTrip(r *http.Request) (*http.Response, error) {
	closeBody(r)
	return nil, errAway(string(n), errNotConfigured)
}

var (
	// errNotConfigured: the configuration has no address for the service.
	errNotConfigured = errors.New("no address is configured")
	// errNoEndpoint: the names are configured, but no address of theirs is known.
	errNoEndpoint = errors.New("its name gives no address")
)

// Addresses reads the setting BACKENDS for Remote. Its commas separate services,
// so semicolons separate several addresses of one.
func Addresses(setting map[string]string) map[string]string {
	addresses := make(map[string]string, len(setting))
	for name, address := range setting {
		addresses[name] = strings.ReplaceAll(address, ";", ",")
	}
	return addresses
}
