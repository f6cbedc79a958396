package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/gateway"
	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/token"
)

// gatewayPrefix begins the gateway's variables.
const gatewayPrefix = "PARLEY_GATEWAY_"

// gatewayDefaults make a gateway for one developer: no limits for this machine,
// and an end that does not wait for clients to move elsewhere.
var gatewayDefaults = []string{
	gatewayPrefix + "LIMIT_EXEMPT=127.0.0.0/8,::1/128",
	gatewayPrefix + "SOCKET_DRAIN_WINDOW=500ms",
	gatewayPrefix + "SOCKET_RESYNC_WINDOW=500ms",
}

// startGateway starts the gateway as its own program does.
func (p *process) startGateway(ctx context.Context) error {
	settings := config.NewSource(gatewayPrefix, append(gatewayDefaults, p.environ...))
	var cfg gateway.Config
	var shifted shift
	if err := errors.Join(settings.Load(&cfg), settings.Load(&shifted), settings.Unknown()); err != nil {
		return err
	}
	now := clock.Offset(clock.System(), shifted.ClockOffset)
	bus, err := p.connect(ctx, "gateway")
	if err != nil {
		return err
	}
	revoked := token.NewRevocations(now, tokenLife)
	g, err := gateway.New(ctx, cfg, gateway.Deps{
		Dialer: p.services, NATS: bus.Conn(), Loopback: p.loopback, Redis: p.redis,
		Verifier:    token.NewVerifier(p.userKeys(), revoked, now, issuer, audience),
		Revocations: revoked, Clock: now, Log: p.log.With("service", "gateway"),
	})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", p.o.Listen)
	if err != nil {
		return fmt.Errorf("listen for the gateway (another place by --listen): %w", err)
	}
	p.ready.Gateway = "http://" + listener.Addr().String()
	p.ready.Socket = strings.Replace(p.ready.Gateway, "http", "ws", 1) + "/v1/ws"
	p.admin.AddCheck("gateway/bus", admin.Always, g.Ready)
	p.admin.AddCheck("gateway/revocations", admin.Once, revoked.Known)
	p.runGateway(ctx, g, listener, revoked, bus)
	return nil
}

// runGateway runs the gateway and what feeds it until the process stops.
func (p *process) runGateway(ctx context.Context, g *gateway.Gateway, l net.Listener, revoked *token.Revocations, bus *event.Bus) {
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	var err error // set before done is closed
	go func() {
		defer close(done)
		defer stop()
		var group errgroup.Group
		group.Go(func() error { defer stop(); return g.Run(running, l) })
		group.Go(func() error {
			defer stop()
			if err := revoked.Follow(running, bus); running.Err() == nil {
				return err
			}
			return nil // told to end
		})
		err = group.Wait()
	}()
	why := func() error { <-done; return err }
	p.onStop(func() error { p.admin.Drain(); stop(); return why() })
	p.watch("gateway", done, why)
}
