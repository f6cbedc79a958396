package gateway

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// maxLane is the longest name of a lane, in bytes.
const maxLane = 64

// openCalls is the calls of one socket that have not been answered, under
// connection.mu. Both maps are nil while there are none: an idle lane is nothing.
type openCalls struct {
	open map[uint32]cancelFunc
	// lanes holds, for each lane with a running call, those that wait for it.
	lanes map[string][]*pending
}

// cancelFunc ends a call that nobody waits for any more.
type cancelFunc = context.CancelFunc

// pending is one call.
type pending struct {
	c       *connection
	id      uint32
	route   *route
	lane    string
	since   time.Duration // when it came, for those who wait in a lane; since Gateway.start
	request []byte
	watch   *watchRequest // instead of route and request
	token   string
	ctx     context.Context //nolint:containedctx // waits in a lane with its deadline
}

// start takes a call in. It returns whether the call is to be run now; if not, a
// lane runs it.
func (o *openCalls) start(p *pending, cancel cancelFunc) (runNow bool) {
	if o.open == nil {
		o.open = make(map[uint32]cancelFunc)
	}
	o.open[p.id] = cancel
	if p.lane == "" {
		return true
	}
	waiting, busy := o.lanes[p.lane]
	if busy {
		o.lanes[p.lane] = append(waiting, p)
		return false
	}
	if o.lanes == nil {
		o.lanes = make(map[string][]*pending)
	}
	o.lanes[p.lane] = nil
	return true
}

// behind says that a call of the lane has waited for so long that another one would only
// wait longer.
func (o *openCalls) behind(lane string, now, patience time.Duration) bool {
	waiting := o.lanes[lane]
	return len(waiting) > 0 && now-waiting[0].since > patience
}

// done forgets a call and gives its cancel function.
func (o *openCalls) done(p *pending) cancelFunc {
	cancel := o.open[p.id]
	delete(o.open, p.id)
	if len(o.open) == 0 {
		o.open = nil
	}
	return cancel
}

// next is the call that its lane runs after p, or nil, and then the lane is gone.
func (o *openCalls) next(p *pending) *pending {
	if p.lane == "" {
		return nil
	}
	waiting := o.lanes[p.lane]
	if len(waiting) == 0 {
		delete(o.lanes, p.lane)
		if len(o.lanes) == 0 {
			o.lanes = nil
		}
		return nil
	}
	o.lanes[p.lane] = waiting[1:]
	return waiting[0]
}

// abandon gives the cancel functions of all calls.
func (o *openCalls) abandon() []cancelFunc {
	cancels := make([]cancelFunc, 0, len(o.open))
	for _, cancel := range o.open {
		cancels = append(cancels, cancel)
	}
	return cancels
}

// call takes a Call in: it is refused, run, or put behind the others of its
// lane. wait is above zero if the socket is over its rate.
func (c *connection) call(id uint32, call *realtimev1.Call, wait time.Duration) {
	if c.isOpen(id) {
		c.end(closeBadFrame, reasonBadFrame)
		return
	}
	if wait > 0 {
		c.refuse(id, errRateLimited(wait, "too many frames"))
		return
	}
	route, err := c.gw.routes.unary(call.GetProcedure())
	if err == nil && len(call.GetLane()) > maxLane {
		err = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT,
			"the name of a lane has at most %d bytes", maxLane)
	}
	if err != nil {
		c.refuse(id, err)
		return
	}
	c.begin(&pending{id: id, route: route, lane: call.GetLane(), request: call.GetRequest()}, call.GetTimeoutMs())
}

// begin runs a call or puts it into its lane, or refuses it. The deadline counts
// from here, the time in the lane included.
func (c *connection) begin(p *pending, timeoutMs uint32) {
	p.c, p.token = c, c.token
	runNow, refusal := c.admit(p, timeoutMs)
	switch {
	case refusal != nil:
		c.gw.metrics.reject(c.gw.base, refusal.GetInfo().GetReason())
		c.reply(replyWith(p.id, refusal), kindReply)
	case runNow:
		c.gw.workers.run(p)
	}
}

func (c *connection) isOpen(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, open := c.calls.open[id]
	return open
}

// admit takes a call in, or says why not: that costs little, for in an overload most
// calls end here.
func (c *connection) admit(p *pending, timeoutMs uint32) (runNow bool, refusal *realtimev1.Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return false, toError(errShuttingDown())
	}
	if len(c.calls.open) >= c.gw.cfg.Socket.OpenCalls {
		return false, c.gw.tooManyCalls
	}
	p.since = c.gw.now()
	if p.watch == nil && c.calls.behind(p.lane, p.since, c.gw.cfg.Socket.LaneWait) {
		return false, c.gw.laneBehind
	}
	var cancel cancelFunc
	p.ctx, cancel = context.WithTimeout(c.gw.base, c.gw.callTimeout(timeoutMs))
	return c.calls.start(p, cancel), nil
}

// callRetry is what a client with too many open calls is told to wait.
const callRetry = 100 * time.Millisecond

func errTooManyCalls(limit int) *connect.Error {
	return errRateLimited(callRetry, "more than %d calls at once", limit)
}

// laneRetry is what a client is told to wait whose lane is behind.
const laneRetry = time.Second

func errLaneBehind(patience time.Duration) *connect.Error {
	return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
		"calls of this lane wait for more than %s already", patience), laneRetry)
}

func errRateLimited(wait time.Duration, format string, args ...any) *connect.Error {
	return rpc.WithRetryAfter(
		rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED, format, args...), wait)
}

// callTimeout is how long a call may take.
func (g *Gateway) callTimeout(milliseconds uint32) time.Duration {
	asked := time.Duration(milliseconds) * time.Millisecond
	if asked == 0 {
		asked = g.cfg.Socket.CallTimeout
	}
	return min(asked, g.cfg.Socket.MaxCallTimeout)
}

// run performs a call, and then those that waited in its lane, one by one.
func (p *pending) run() {
	for p != nil {
		frame, k := p.perform()
		p = p.c.answered(p, frame, k)
	}
}

// answered sends the reply of p and gives the next call of its lane. The id is
// free before the client can know of the reply, and the reply is queued before
// the next of the lane begins.
func (c *connection) answered(p *pending, frame []byte, k kind) *pending {
	c.mu.Lock()
	cancel := c.calls.done(p)
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	toFlush := frame != nil && c.queueItem(outgoing{payload: frame, opcode: c.format.opcode(), kind: k})
	next := c.nextCall(p)
	switch {
	case !toFlush:
	case next == nil: // this worker has nothing else to do
		c.flush()
	default:
		c.gw.workers.run((*flush)(c))
	}
	return next
}

// nextCall frees the lane of p and gives the next call of it.
func (c *connection) nextCall(p *pending) *pending {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.calls.next(p)
	if next != nil {
		next.token = c.token // the one that it came with may have expired in the lane
	}
	if c.draining && len(c.calls.open) == 0 {
		c.endLocked(closeRestart, comeBack(c.gw.spread(c.gw.cfg.Socket.DrainReconnect)), false)
	}
	return next
}

// refuse answers a call that is not performed.
func (c *connection) refuse(id uint32, err error) {
	c.gw.metrics.reject(c.gw.base, rpc.InfoOf(err).GetReason())
	c.reply(errorFrame(id, err), kindReply)
}
