package gateway

import (
	"context"
	"time"
)

// drain has the socket end as soon as its running calls have their replies; new
// ones are refused.
func (c *connection) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if len(c.calls.open) == 0 {
		c.endLocked(closeRestart, comeBack(c.gw.spread(c.gw.cfg.Socket.DrainReconnect)), false)
	}
}

// drainIn is drain after that time.
func (c *connection) drainIn(after time.Duration) {
	c.drainAt.Store(int64(c.gw.now() + after))
	c.gw.wheel.within(&c.entry, after)
}

// drainSockets closes all sockets, spread over the window, and returns when they
// are gone; what is still there long after is cut. New sockets are refused from
// the first moment. ctx cuts the window short.
func (g *Gateway) drainSockets(ctx context.Context) {
	g.draining.Store(true)
	g.open.shut()
	g.hub.eachStranger(func(c *connection) { c.drain() })
	g.hub.each(func(c *connection) { c.drainIn(g.spread(g.cfg.Socket.DrainWindow)) })

	patience := time.NewTimer(g.cfg.drainBound())
	defer patience.Stop()
	select {
	case <-g.open.gone:
		return
	case <-ctx.Done():
	case <-patience.C:
	}
	g.log.WarnContext(ctx, "sockets cut that did not end in time")
	g.hub.eachStranger((*connection).cut)
	g.hub.each((*connection).cut)
	<-g.open.gone
}
