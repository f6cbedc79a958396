package messaging

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

const (
	// batchBytes bounds the bodies of one transaction: at 4,000 characters each, a
	// full batch of the longest messages is split.
	batchBytes = 1 << 20
	// checkTimeout bounds one question to privacy.
	checkTimeout = 2 * time.Second
	// maxChecks of one send's permission. More than one is needed only when the
	// state was marked stale between the answer and the commit.
	maxChecks = 5
	// overloadedRetry is what a client waits for before it tries again.
	overloadedRetry = time.Second
)

var (
	// errUnknownOutcome: the message may be in the log or not. The client tries
	// again with the same id and finds out. The cause is logged once per batch.
	errUnknownOutcome = rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"it is not known whether the message was stored"), overloadedRetry)
	errPermissionUnknown = rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"it is not known whether you may write to this person"), overloadedRetry)
	errTooManySends = rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
		"too many messages are waiting"), overloadedRetry)
	errStopping = rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"the service is stopping"), overloadedRetry)
)

// committer is one of the queues between SendMessage and the log. A conversation
// always goes to the same one, so its sends are committed in the order in which
// they came; see gatherer for how a batch forms.
//
// A send whose permission state is stale is parked, and with it whatever comes
// after it for its conversation, until privacy has answered. Other conversations
// go on meanwhile.
type committer struct {
	queue       *gatherer[*send]
	appender    *appender
	permissions Permissions
	pusher      *pusher
	metrics     *metrics
	tracer      trace.Tracer
	log         *slog.Logger
	pushes      chan committed

	// Guarded by the queue's lock: to take a send and to see that its conversation
	// is parked is one step, or it could overtake what is being given back.
	parked   map[uuid.UUID]*parking
	checking bool // a goroutine asks privacy
}

// parking is a conversation whose permission is being asked for.
type parking struct {
	conversationID uuid.UUID
	low, high      uuid.UUID
	version        int64
	sends          []*send
}

// wait is the queue's question whether a send has to wait for a permission.
func (c *committer) wait(s *send) bool {
	p := c.parked[s.conversationID]
	if p == nil {
		return false
	}
	p.sends = append(p.sends, s)
	return true
}

func newCommitter(cfg settings, a *appender, permissions Permissions, p *pusher, m *metrics, tracer trace.Tracer, log *slog.Logger) *committer {
	c := &committer{
		queue:    newGatherer(cfg.CommitBatch, batchBytes, cfg.CommitQueue, (*send).bytes),
		appender: a, permissions: permissions, pusher: p, metrics: m, tracer: tracer, log: log,
		parked: map[uuid.UUID]*parking{}, pushes: make(chan committed, 1),
	}
	c.queue.aside = c.wait
	return c
}

// committed is a batch whose pushes are to be made. Should the process die first, the
// relay of another replica makes them (see events.go), and receivers repair the rest.
type committed struct {
	ctx      context.Context //nolint:containedctx // with the batch's span
	sends    []*send
	verdicts []verdict
}

// run works until ctx has ended and everything that was accepted is answered and
// pushed. Pushes are made beside the next commit: when many send they wait from one
// commit to the next, so as little as possible is done in between.
func (c *committer) run(ctx context.Context) error {
	var pushing sync.WaitGroup
	pushing.Go(func() { //nolint:contextcheck // each batch brings its own
		for batch := range c.pushes {
			c.push(batch)
		}
	})
	c.queue.work(ctx, c.process)
	close(c.pushes)
	pushing.Wait()
	return nil
}

// submit queues a send. The error, if any, is the caller's answer.
func (c *committer) submit(s *send) error {
	return refusal(c.queue.add(s), errTooManySends)
}

// refusal is what a caller gets to hear when a gatherer took nothing.
func refusal(err error, full error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errGathererFull):
		return full
	default:
		return errStopping
	}
}

// process works on one batch.
func (c *committer) process(ctx context.Context, batch []*send) {
	sends := c.admit(batch)
	if len(sends) == 0 {
		return
	}
	started := time.Now() //nolint:forbidigo // a duration, for a metric
	linked := links(sends)
	if len(linked) > 0 {
		var end func()
		ctx, end = c.trace(ctx, linked, started)
		defer end()
	}
	c.commit(ctx, sends)
	c.metrics.batch(ctx, len(sends), time.Since(started)) //nolint:forbidigo // as above
}

// admit leaves out whose caller has gone, and who has the key of another send of
// the batch: that one's answer is theirs.
func (c *committer) admit(batch []*send) []*send {
	sends := make([]*send, 0, len(batch))
	byKey := make(map[sendKey]*send, len(batch))
	for _, s := range batch {
		if s.gone() && len(s.followers) == 0 {
			s.answer(answer{outcome: outcomeFailed, err: context.Canceled})
			continue
		}
		if first := byKey[s.key]; first != nil {
			first.followers = append(first.followers, s)
			continue
		}
		byKey[s.key] = s
		sends = append(sends, s)
	}
	return sends
}

// commit appends sends and tells the outcome to whom it concerns. A send with
// faulty data must not take the others with it: the batch is split until it
// stands alone. Splitting keeps the order.
func (c *committer) commit(ctx context.Context, sends []*send) {
	verdicts, err := c.appender.append(ctx, sends)
	switch {
	case err == nil:
		c.settle(ctx, sends, verdicts)
	case faultyData(err) && len(sends) > 1:
		half := len(sends) / 2
		c.commit(ctx, sends[:half])
		c.commit(ctx, sends[half:])
	case faultyData(err):
		c.fail(ctx, sends, err) // no retry can help: an internal error, logged by the chain
	default:
		c.log.WarnContext(ctx, "group commit failed", "sends", len(sends), "error", err)
		c.fail(ctx, sends, errUnknownOutcome)
	}
}

// settle answers the callers, then has the batch pushed.
func (c *committer) settle(ctx context.Context, sends []*send, verdicts []verdict) {
	var again []*send
	var stale []int
	for i, s := range sends {
		v := verdicts[i]
		if v.outcome == outcomeStale && s.tries < maxChecks {
			stale = append(stale, i)
			continue
		}
		a := answer{outcome: v.outcome, seq: v.seq, ordinal: v.ordinal, createdAt: v.createdAt}
		if v.outcome == outcomeStale {
			a = answer{outcome: outcomeFailed, err: errPermissionUnknown}
		}
		again = append(again, c.answer(ctx, s, a)...)
	}
	if len(stale) > 0 {
		c.park(ctx, sends, verdicts, stale)
	}
	if len(again) > 0 {
		c.queue.giveBack(again, 0)
	}
	c.pushes <- committed{ctx, sends, verdicts}
}

// push tells the devices of a batch what is in the log.
func (c *committer) push(batch committed) {
	traced := trace.SpanContextFromContext(batch.ctx).IsSampled()
	for i, s := range batch.sends {
		if v := batch.verdicts[i]; v.outcome == outcomeAppended {
			of := batch.ctx
			if traced { // a push belongs to its own send's trace, not to the batch's
				of = trace.ContextWithSpanContext(of, s.span)
			}
			c.pusher.entry(of, pair(v.low, v.high), s.entry(v))
		}
	}
}

// fail gives all the same error.
func (c *committer) fail(ctx context.Context, sends []*send, err error) {
	for _, s := range sends {
		if again := c.answer(ctx, s, answer{outcome: outcomeFailed, err: err}); len(again) > 0 {
			c.queue.giveBack(again, 0)
		}
	}
}

// answer answers a send and counts it. It returns who has to be judged again.
func (c *committer) answer(ctx context.Context, s *send, a answer) []*send {
	c.metrics.send(ctx, a.outcome)
	return s.answer(a)
}

// park sets the stale ones of a batch aside, by conversation, and has privacy
// asked. Every send of a conversation whose state is stale is among them, except
// those that are in the log already, so the order within it is kept.
func (c *committer) park(ctx context.Context, sends []*send, verdicts []verdict, stale []int) {
	c.queue.mu.Lock()
	defer c.queue.mu.Unlock()
	for _, i := range stale {
		s, v := sends[i], verdicts[i]
		p := c.parked[s.conversationID]
		if p == nil {
			p = &parking{conversationID: s.conversationID, low: *v.low, high: *v.high, version: v.permissionVersion}
			c.parked[s.conversationID] = p
		}
		s.tries++
		s.permission = nil
		p.sends = append(p.sends, s)
	}
	c.queue.held += len(stale)
	if !c.checking {
		c.checking = true
		go c.check(ctx) // ends when nothing is parked; work waits for what is held
	}
}

// check asks privacy for all that is parked, and again for what was parked
// meanwhile, until nothing is.
func (c *committer) check(ctx context.Context) {
	for {
		c.queue.mu.Lock()
		var open []*parking
		for _, p := range c.parked {
			open = append(open, p)
		}
		if len(open) == 0 {
			c.checking = false
			c.queue.mu.Unlock()
			return
		}
		c.queue.mu.Unlock()
		answers, err := c.ask(ctx, open)
		c.release(ctx, open, answers, err)
	}
}

// ask gets privacy's answers, one for each of open. The time counts from before the
// question.
func (c *committer) ask(ctx context.Context, open []*parking) ([]permission, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	at := c.appender.clock.Now()
	checks := make([]PermissionCheck, 0, 2*len(open))
	for _, p := range open {
		checks = append(checks, PermissionCheck{p.low, p.high}, PermissionCheck{p.high, p.low})
	}
	allowed, err := c.permissions.CheckBatch(ctx, checks)
	if err != nil {
		return nil, err
	}
	if len(allowed) != len(checks) {
		return nil, errUnanswered
	}
	answers := make([]permission, len(open))
	for i, p := range open {
		answers[i] = permission{at: at, version: p.version, low: allowed[2*i], high: allowed[2*i+1]}
	}
	return answers, nil
}

// release puts the sends of answered conversations back to the front with their
// answers, or fails them when privacy is away: that is neither a refusal nor a
// permission.
func (c *committer) release(ctx context.Context, open []*parking, answers []permission, err error) {
	if err != nil {
		c.log.WarnContext(ctx, "permissions are not known", "conversations", len(open), "error", err)
	}
	c.queue.mu.Lock()
	var sends []*send
	for i, p := range open {
		delete(c.parked, p.conversationID)
		for _, s := range p.sends {
			if err == nil {
				s.permission = &answers[i]
			}
			sends = append(sends, s)
		}
	}
	if err == nil {
		// Under the lock: a send that is taken from now on must not overtake these.
		c.queue.giveBackLocked(sends, len(sends))
		c.queue.mu.Unlock()
		return
	}
	c.queue.mu.Unlock()
	c.fail(ctx, sends, errPermissionUnknown)
	c.queue.giveBack(nil, len(sends))
}
