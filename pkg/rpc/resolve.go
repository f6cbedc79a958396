package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/parleychat/parley/pkg/clock"
)

var errBadTarget = errors.New("want http://host:port or https://host:port")

// lookupTimeout bounds one look at a name.
const lookupTimeout = 3 * time.Second

func parseTargets(address string) ([]target, error) {
	var targets []target
	for part := range strings.SplitSeq(address, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		t, err := parseTarget(part)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		targets = append(targets, t)
	}
	if len(targets) == 0 {
		return nil, errors.New("empty address")
	}
	return targets, nil
}

func systemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up: %w", err)
	}
	return addrs, nil
}

// resolveLoop keeps the endpoints in step with the names.
func (b *balancer) resolveLoop(ctx context.Context) {
	defer close(b.done)
	b.resolve(ctx)
	close(b.first)
	timer := time.NewTimer(b.cfg.ResolveEvery)
	defer timer.Stop()
	for {
		// Looks that failed dials ask for come at most ten times as often.
		pause := b.cfg.ResolveEvery / 10
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-b.wake:
		}
		b.resolve(ctx)
		if !clock.Pause(ctx, pause) {
			return
		}
		timer.Reset(b.cfg.ResolveEvery)
	}
}

// resolve looks up all names once. A name that cannot be looked up keeps the
// addresses it had: a resolver that is away must not take the service with it.
func (b *balancer) resolve(ctx context.Context) {
	b.mu.RLock()
	old := make(map[string]*endpoint, len(b.endpoints))
	for _, e := range b.endpoints {
		old[target{scheme: e.scheme, host: e.host}.key(e.addr)] = e
	}
	b.mu.RUnlock()

	var found []*endpoint
	for _, t := range b.targets {
		addrs, err := b.lookup(ctx, t)
		if err != nil || len(addrs) == 0 {
			if ctx.Err() == nil {
				b.cfg.Log.DebugContext(ctx, "look up backend", "service", b.service, "host", t.host, "error", err)
			}
			for key, e := range old {
				if e.scheme == t.scheme && e.host == t.host && strings.HasSuffix(e.addr, ":"+t.port) {
					found = append(found, e)
					delete(old, key)
				}
			}
			continue
		}
		for _, addr := range addrs {
			key := t.key(addr)
			if e, ok := old[key]; ok {
				found = append(found, e)
				delete(old, key)
				continue
			}
			found = append(found, newEndpoint(t, addr, b.cfg))
		}
	}
	b.mu.Lock()
	b.endpoints = found
	b.mu.Unlock()
	for _, e := range old {
		e.retire()
	}
}

// lookup returns the ip:port of a target. Addresses come in the resolver's
// order; the round robin needs no other.
func (b *balancer) lookup(ctx context.Context, t target) ([]string, error) {
	if ip, err := netip.ParseAddr(t.host); err == nil {
		return []string{net.JoinHostPort(ip.String(), t.port)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := b.cfg.Lookup(ctx, t.host)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(ips))
	seen := make(map[netip.Addr]bool, len(ips))
	for _, ip := range ips {
		if ip = ip.Unmap(); !seen[ip] {
			seen[ip] = true
			out = append(out, net.JoinHostPort(ip.String(), t.port))
		}
	}
	return out, nil
}
