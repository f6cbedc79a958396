package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"
)

// Run serves on the listener until ctx ends and then drains: no new connections,
// sockets are closed over the drain window, running calls end. It returns nil
// after an orderly end and closes the listener in any case.
func (g *Gateway) Run(ctx context.Context, listener net.Listener) error { //nolint:contextcheck // sockets outlive ctx until they are drained
	// What serves sockets outlives ctx until they are drained.
	life, stop := context.WithCancel(g.base)
	defer stop()
	calls, cutCalls := context.WithCancel(g.base)
	defer cutCalls()
	defer g.workers.stop()
	server := g.server(calls) //nolint:contextcheck // running calls too

	group, inner := errgroup.WithContext(life)
	group.Go(func() error {
		g.wheel.run(inner)
		return nil
	})
	group.Go(func() error { return g.subscriber.Run(inner) })
	group.Go(func() error { return g.presence.run(inner) })
	group.Go(func() error { return g.measure(inner, g.meter) })
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		defer stop()
		select {
		case <-ctx.Done():
		case <-inner.Done():
		}
		return g.drain(inner, server, cutCalls)
	})
	return group.Wait()
}

// drain is the end of Run, in this order: no new connections; sockets and calls
// end side by side; what is left is cut.
func (g *Gateway) drain(ctx context.Context, server *http.Server, cutCalls func()) error {
	g.draining.Store(true)
	var group errgroup.Group
	group.Go(func() error {
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.HTTP.CallTimeout/2)
		defer cancel()
		if err := server.Shutdown(wait); err == nil {
			return nil
		}
		cutCalls() // streams that nobody ends
		if err := server.Close(); err != nil {
			return fmt.Errorf("close server: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		g.drainSockets(ctx)
		return nil
	})
	return group.Wait()
}

func (g *Gateway) server(calls context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           g,
		Protocols:         protocols,
		ReadHeaderTimeout: g.cfg.HTTP.HeaderTimeout,
		IdleTimeout:       g.cfg.HTTP.IdleTimeout,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return calls },
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 250},
	}
}
