package gateway

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// now is the time since the gateway began, in monotonic time. It is never 0.
func (g *Gateway) now() time.Duration { return time.Since(g.start) + 1 }

// spread is a random part of d, so that what happens to many sockets at once is
// not answered by all clients at once.
func (g *Gateway) spread(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// firstWake is how long a new socket may be left alone.
func (c *connection) firstWake() time.Duration {
	c.hear()
	return c.gw.cfg.Socket.AuthTimeout
}

// wake does all that a socket does by time. It runs on the wheel, never blocks,
// and says when it wants to run again.
func (c *connection) wake() time.Duration {
	now := c.gw.now()
	cfg := &c.gw.cfg.Socket
	if after, done := c.wakeEnding(); done {
		return after
	}
	if c.expires.Load() == 0 {
		if left := cfg.AuthTimeout - time.Since(c.opened); left > 0 {
			return left
		}
		c.end(closeAuthTimeout, reasonAuthTimeout)
		return cfg.CloseGrace
	}
	silent := now - time.Duration(c.heard.Load())
	if silent >= cfg.DeadAfter {
		c.end(closeSilent, reasonSilent)
		return cfg.CloseGrace
	}
	expiry := time.Unix(c.expires.Load(), 0).Sub(c.gw.clock.Now())
	if expiry <= 0 {
		c.end(closeExpired, "TOKEN_EXPIRED")
		return cfg.CloseGrace
	}
	next := min(cfg.DeadAfter-silent, expiry, c.beat(now), c.writeLeft())
	next = min(next, c.wakeFor(&c.drainAt, now, c.drain), c.wakeFor(&c.resyncAt, now, c.resync))
	return max(next, 1)
}

// wakeEnding cuts what has had its time: a close that the client does not
// answer, and a write that does not end.
func (c *connection) wakeEnding() (after time.Duration, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ending:
		after = time.Until(c.endBy)
	case c.flushing:
		after = c.writeLeftLocked()
	default:
		return 0, false
	}
	if after > 0 {
		return after, c.ending
	}
	c.cut()
	return 0, true
}

// writeLeft is how long the write that is under way may still take.
func (c *connection) writeLeft() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.flushing {
		return never
	}
	return max(c.writeLeftLocked(), 1)
}

func (c *connection) writeLeftLocked() time.Duration {
	return c.gw.cfg.Socket.WriteTimeout - time.Since(c.flushSince)
}

// beat pings when it is time and says when the next ping is due.
func (c *connection) beat(now time.Duration) time.Duration {
	interval := c.gw.cfg.Socket.PingInterval
	if c.pingAt == 0 {
		// The first ping is anywhere within the interval: sockets that were opened
		// together are not pinged together.
		c.pingAt = now + interval/4 + c.gw.spread(interval*3/4)
	}
	if now >= c.pingAt {
		c.send(outgoing{opcode: websocket.PingMessage, kind: kindPing})
		c.pingAt = now + interval*9/10 + c.gw.spread(interval/5)
	}
	return c.pingAt - now
}

// never is longer than the wheel looks ahead.
const never = 24 * time.Hour

// wakeFor runs do once the time kept in at has come.
func (c *connection) wakeFor(at *atomic.Int64, now time.Duration, do func()) time.Duration {
	due := at.Load()
	switch {
	case due == 0:
		return never
	case time.Duration(due) > now:
		return time.Duration(due) - now
	case at.CompareAndSwap(due, 0):
		do()
	}
	return never
}

// resyncIn has the client told to Sync in that time.
func (c *connection) resyncIn(after time.Duration) {
	c.resyncAt.CompareAndSwap(0, int64(c.gw.now()+after))
	c.gw.wheel.within(&c.entry, after)
}

// resync tells the client that pushes may have been lost.
func (c *connection) resync() {
	c.reply(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}}, kindResync)
}
