package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/postgres"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// errDuplicate ends the transaction of an event whose effect is there already.
var errDuplicate = errors.New("done before")

// take handles one event of a delivery to its end: done, to be tried again, or
// parked. The call in progress may finish when the service stops, hence a context
// that outlives ctx; it ends when JetStream would deliver again anyway.
func (c *consumer) take(ctx context.Context, d *delivery, ev *eventv1.Event, unreadable error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackWait)
	defer cancel()
	if unreadable != nil {
		c.park(ctx, d, ev, unreadable, 1)
		return
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": ev.GetTraceparent()})
	ctx, span := otel.Tracer(scope).Start(ctx, "event "+ev.GetType(), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attribute.String("service", c.ls.service), attribute.String("listener", c.l.Name)))
	defer span.End()

	err := c.effect(ctx, ev)
	switch {
	case err == nil:
		c.ls.bus.metrics.took(ctx, c.ls.service, c.l.Name, c.ls.clock.Now().Sub(ev.GetTime().AsTime()))
		c.settle(ctx, d, ev, outcomeDone)
	case errors.Is(err, errDuplicate):
		c.settle(ctx, d, ev, outcomeDuplicate)
	case errors.Is(err, ErrUnknownPayload):
		c.retry(ctx, d, ev, outcomeUnknown, c.ls.opts.unknownWait, err)
	case c.passes(ctx, err):
		c.retry(ctx, d, ev, outcomeUnavailable, time.Second+c.ls.opts.backoff(1), err)
	default:
		span.SetStatus(codes.Error, err.Error())
		if n := c.failed(key(d.msg, ev)); n >= c.ls.opts.maxAttempts {
			c.park(ctx, d, ev, err, n)
		} else {
			c.retry(ctx, d, ev, outcomeFailed, c.ls.opts.backoff(n), err)
		}
	}
}

// effect runs guard and handler in one transaction.
func (c *consumer) effect(ctx context.Context, ev *eventv1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, c.ls.opts.timeout)
	defer cancel()
	var err error
	for range 3 { // a deadlock's victim goes again at once: nothing has happened
		handleCtx, committed := withAfterCommit(ctx)
		err = pgx.BeginFunc(ctx, c.ls.pool, func(tx pgx.Tx) error {
			if err := c.guard(ctx, tx, ev); err != nil {
				return err
			}
			return c.handle(handleCtx, tx, ev)
		})
		if err == nil {
			committed()
		}
		if !postgres.IsRetryable(err) {
			break
		}
	}
	return err
}

// handle calls the handler; its panic is an error like any other, because one bad
// event must not end the process again and again.
func (c *consumer) handle(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.log.ErrorContext(ctx, "listener panicked", "event", ev.GetId(), "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return c.l.Handle(ctx, tx, ev)
}

// guard makes the effect of a listener of mode Once happen once. A second
// delivery at the same time waits on the key for the first one's commit.
func (c *consumer) guard(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) error {
	if c.l.Mode != Once {
		return nil
	}
	id, err := uuid.Parse(ev.GetId())
	if err != nil {
		return fmt.Errorf("event id: %w", err)
	}
	now := c.ls.clock.Now()
	if age := now.Sub(ev.GetTime().AsTime()); age > c.ls.opts.inboxKeep {
		return fmt.Errorf("event of %s is older than the inbox remembers (%s): it may have been done", ev.GetTime().AsTime(), c.ls.opts.inboxKeep)
	}
	tag, err := tx.Exec(ctx, `INSERT INTO inbox (listener, event_id, at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, c.l.Name, id, now)
	if err != nil {
		return fmt.Errorf("insert into inbox: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return errDuplicate
	}
	return nil
}

// settle answers the barrier and counts the event as done, after the commit. If either is
// lost the event comes again, finds its effect and settles then.
func (c *consumer) settle(ctx context.Context, d *delivery, ev *eventv1.Event, outcome string) {
	if ev.GetReplySubject() != "" {
		if err := c.ls.bus.conn.Publish(ev.GetReplySubject(), []byte(c.ls.service+"/"+c.l.Name)); err != nil {
			c.log.DebugContext(ctx, "barrier could not be answered", "event", ev.GetId(), "error", err)
		}
	}
	c.ack(ctx, d, ev)
	c.ls.bus.metrics.count(ctx, c.ls.service, c.l.Name, outcome)
}

func (c *consumer) ack(ctx context.Context, d *delivery, ev *eventv1.Event) {
	c.forget(key(d.msg, ev))
	d.done(ctx)
}

// retry asks for another delivery after a while.
func (c *consumer) retry(ctx context.Context, d *delivery, ev *eventv1.Event, outcome string, wait time.Duration, cause error) {
	c.ls.bus.metrics.count(ctx, c.ls.service, c.l.Name, outcome)
	level := slog.LevelWarn
	if outcome == outcomeUnavailable && !c.mayWarn() {
		level = slog.LevelDebug // in an outage every event says the same, every second
	}
	c.log.Log(ctx, level, "event will be tried again", "event", ev.GetId(), "type", ev.GetType(), "key", ev.GetKey(),
		"outcome", outcome, "wait", wait, "error", cause)
	d.retry(ctx, 1, wait)
}

// park puts the event aside and acknowledges it only when that is certain.
func (c *consumer) park(ctx context.Context, d *delivery, ev *eventv1.Event, cause error, attempts int) {
	letter := deadLetter{
		subject: d.msg.Subject(), service: c.ls.service, listener: c.l.Name, event: ev,
		cause: cause, attempts: attempts, at: c.ls.clock.Now(), id: occurrence(d.msg, ev),
	}
	if err := c.ls.bus.bury(ctx, letter); err != nil {
		c.retry(ctx, d, ev, outcomeUnavailable, time.Second+c.ls.opts.backoff(1), errors.Join(cause, err))
		return
	}
	c.log.ErrorContext(ctx, "event is parked as a dead letter", "event", ev.GetId(), "type", ev.GetType(), "key", ev.GetKey(),
		"attempts", attempts, "error", cause)
	c.ack(ctx, d, ev)
	c.ls.bus.metrics.count(ctx, c.ls.service, c.l.Name, outcomeParked)
}

// passes tells whether an error is an outage, which no event is to blame for. Of a
// call that ran out of time only the database itself can tell: if it does not
// answer now either, it was not the handler's fault.
func (c *consumer) passes(ctx context.Context, err error) bool {
	if _, later := errors.AsType[laterError](err); later || postgres.IsUnavailable(err) || postgres.IsRetryable(err) || connect.CodeOf(err) == connect.CodeUnavailable {
		return true
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return postgres.Ready(ctx, c.ls.pool) != nil
}

// occurrence tells an event in the stream apart from all others. An event that was
// replayed is another message: parked again soon after, it must not count as the
// letter that was removed, or it would be lost.
func occurrence(msg jetstream.Msg, ev *eventv1.Event) string {
	if meta, err := msg.Metadata(); err == nil {
		return fmt.Sprintf("%s/%d", key(msg, ev), meta.Sequence.Stream)
	}
	return key(msg, ev)
}

// key tells deliveries of one event apart from those of others.
func key(msg jetstream.Msg, ev *eventv1.Event) string {
	if ev.GetId() != "" {
		return ev.GetId()
	}
	if meta, err := msg.Metadata(); err == nil {
		return fmt.Sprintf("%s/%d", meta.Stream, meta.Sequence.Stream)
	}
	return msg.Subject()
}
