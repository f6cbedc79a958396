package mail

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/parleychat/parley/pkg/clock"
)

const (
	// ackWait is after how long without an answer another replica gets the mail;
	// longer than the timeout of a delivery can be.
	ackWait = 90 * time.Second
	// maxUnderWay counts what waits for its next try too.
	maxUnderWay = 4096
	// concurrency is how many mails one process delivers at once.
	concurrency = 4
	// leastLeft is how much life a mail must have left for another try.
	leastLeft = 20 * time.Second
	// depthEvery is how often the length of the queue is measured.
	depthEvery = 15 * time.Second
	askTimeout = 5 * time.Second
	// defaultDrain ends before the 15 s that a service gives to each phase of its
	// shutdown: what is cut off by us is given back to the queue at once, what dies with
	// the process may have been delivered and goes out again after ackWait.
	defaultDrain = 10 * time.Second
)

// defaultBackoff is that of most mail servers' greylisting, and then patient.
func defaultBackoff(attempt int) time.Duration {
	switch attempt {
	case 1:
		return time.Minute
	case 2:
		return 5 * time.Minute
	default:
		return 30 * time.Minute
	}
}

// nextTry is how long to wait with a mail that has so much life left; false when
// it is given up. A code of ten minutes gets a few tries within them: a wait takes
// at most half of what is left.
func nextTry(wait, left time.Duration) (time.Duration, bool) {
	if left < leastLeft {
		return 0, false
	}
	return min(wait, left/2), true
}

// Run delivers mails until ctx ends, and then, for Config.Drain, those that it has
// begun. It returns nil: whatever goes wrong with stream or server, it tries again.
func (q *Queue) Run(ctx context.Context) error {
	if !q.Enabled() {
		q.log.WarnContext(ctx, "no mail server is configured: whatever needs a mail says UNAVAILABLE")
		<-ctx.Done()
		return nil
	}
	w := &worker{q: q, slots: make(chan struct{}, concurrency)}
	delivering, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	w.delivering = delivering
	stop := context.AfterFunc(ctx, func() {
		clock.Pause(delivering, q.cfg.Drain)
		cut()
	})
	defer stop()
	defer w.busy.Wait()
	for attempt := 1; ctx.Err() == nil; attempt++ {
		started := q.cfg.Clock.Now()
		err := w.consume(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if q.cfg.Clock.Now().Sub(started) > time.Minute {
			attempt = 1
		}
		q.log.WarnContext(ctx, "the mail queue is looked for again", "error", err)
		clock.Pause(ctx, min(time.Duration(attempt)*200*time.Millisecond, 3*time.Second))
	}
	return nil
}

// worker is the delivering half of a queue.
type worker struct {
	q     *Queue
	slots chan struct{}
	busy  sync.WaitGroup
	// delivering outlives the context of Run by Config.Drain: its end ends no
	// conversation with a mail server at once, or the mail might go out twice.
	delivering context.Context //nolint:containedctx // one for all deliveries, longer than that of the caller
}

// consume takes mails until ctx ends or the consumer is lost.
func (w *worker) consume(ctx context.Context) error {
	cons, err := w.consumer(ctx)
	if err != nil {
		return err
	}
	iter, err := cons.Messages(jetstream.PullMaxMessages(concurrency), jetstream.PullExpiry(10*time.Second),
		jetstream.PullHeartbeat(3*time.Second), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	// Drained, not stopped: what was fetched ahead is given back below, or it
	// would reach another replica only after ackWait.
	stop := context.AfterFunc(ctx, iter.Drain)
	defer stop()
	defer iter.Stop()
	measuring, done := context.WithCancel(ctx)
	defer done()
	w.busy.Go(func() { w.measure(measuring, cons) })
	for {
		msg, err := iter.Next()
		if err != nil {
			return fmt.Errorf("next mail: %w", err)
		}
		if !w.slot(ctx) {
			if err := msg.Nak(); err != nil {
				return fmt.Errorf("give back a mail: %w", err)
			}
			continue
		}
		w.busy.Go(func() {
			defer func() { <-w.slots }()
			// The wait for a slot is not the delivery's: the time for that begins anew.
			if err := msg.InProgress(); err != nil {
				w.q.log.WarnContext(ctx, "the queue could not be told that a mail is under way", "error", err)
			}
			w.take(w.delivering, msg) //nolint:contextcheck // a delivery outlives ctx, see delivering
		})
	}
}

// slot waits for leave to deliver; false says that ctx has ended.
func (w *worker) slot(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case w.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// consumer is one for all replicas.
func (w *worker) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stream, err := w.q.ensure(ctx)
	if err != nil {
		return nil, err
	}
	cons, err := stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: w.q.cfg.Service + "--mail", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: maxUnderWay,
	})
	if err != nil {
		return nil, fmt.Errorf("make consumer: %w", err)
	}
	return cons, nil
}

// measure keeps the metric of the queue's length.
func (w *worker) measure(ctx context.Context, cons jetstream.Consumer) {
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		info, err := cons.Info(asking)
		cancel()
		if err == nil {
			w.q.metrics.depth(ctx, info.NumPending+uint64(info.NumAckPending)) // what is delivered and not done waits as well
		}
		clock.Pause(ctx, depthEvery)
	}
}

// take works on one delivery of one mail and tells the queue what became of it.
//
// Between the mail server's answer and the acknowledgement stands nothing but this
// process: if it dies there, the mail goes out once more when ackWait has passed,
// with the same Message-ID. The other way round a crash would lose mails.
func (w *worker) take(ctx context.Context, msg jetstream.Msg) {
	log := w.q.log
	id, err := uuid.Parse(msg.Headers().Get(jetstream.MsgIDHeader))
	var e envelope
	if err == nil {
		e, err = w.q.sealer.open(id, msg.Data())
	}
	if err != nil {
		log.ErrorContext(ctx, "a mail in the queue cannot be read and is dropped", "error", err)
		w.drop(ctx, msg, "", outcomeUnreadable)
		return
	}
	log = log.With("mail", id, "template", e.Template)
	left := e.ExpiresAt.Sub(w.q.cfg.Clock.Now())
	if left <= 0 {
		log.WarnContext(ctx, "a mail is of no more use and is dropped")
		w.drop(ctx, msg, e.Template, outcomeExpired)
		return
	}
	err = w.q.deliver(ctx, id, e)
	refused, final := errors.AsType[refusedError](err)
	switch {
	case err == nil:
		w.done(ctx, msg, e.Template)
	case final:
		log.WarnContext(ctx, "the mail server refuses a mail for good", "code", refused.code)
		w.drop(ctx, msg, e.Template, outcomeRefused)
	default:
		log.WarnContext(ctx, "a mail could not be delivered", "error", err)
		w.later(ctx, msg, e.Template, left)
	}
}

// deliver renders and hands over.
func (q *Queue) deliver(ctx context.Context, id uuid.UUID, e envelope) error {
	r, err := q.renderer.render(Message{ID: id, Template: e.Template, Locale: e.Locale, Data: e.Data}, q.cfg.Settings.Product)
	if err != nil {
		return err // a newer replica's template: it will get the mail at one of the tries
	}
	raw, err := q.transport.compose(id, e.To, e.SentAt, r)
	if err != nil {
		return err
	}
	return q.transport.deliver(ctx, e.To, raw)
}

func (w *worker) done(ctx context.Context, msg jetstream.Msg, template string) {
	w.q.metrics.count(ctx, template, outcomeSent)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	// Waited for, and asked again: a lost acknowledgement is a second mail.
	err := msg.DoubleAck(ctx)
	if err != nil {
		err = msg.Ack()
	}
	if err != nil {
		w.q.log.WarnContext(ctx, "a delivered mail could not be acknowledged and may go out again", "error", err)
	}
}

func (w *worker) drop(ctx context.Context, msg jetstream.Msg, template, outcome string) {
	w.q.metrics.count(ctx, template, outcome)
	if err := msg.TermWithReason(outcome); err != nil {
		w.q.log.WarnContext(ctx, "a dropped mail could not be told to the queue", "error", err)
	}
}

// later gives the mail back for its next try. The count of deliveries also rises
// when a replica stops; it only lengthens a wait that is bounded by the mail's life.
func (w *worker) later(ctx context.Context, msg jetstream.Msg, template string, left time.Duration) {
	attempt := 1
	if meta, err := msg.Metadata(); err == nil {
		attempt = int(min(meta.NumDelivered, 1000)) // far beyond every step of a backoff
	}
	wait, ok := nextTry(w.q.cfg.Backoff(attempt), left)
	if !ok {
		w.drop(ctx, msg, template, outcomeExpired)
		return
	}
	w.q.metrics.count(ctx, template, outcomeFailed)
	if err := msg.NakWithDelay(wait); err != nil {
		w.q.log.WarnContext(ctx, "a mail that failed could not be given back; it comes again by itself", "error", err)
	}
}
