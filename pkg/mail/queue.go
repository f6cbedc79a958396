package mail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// ErrUnavailable says that no mail can be sent: this deployment has no mail server.
var ErrUnavailable = rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_MAIL_UNAVAILABLE, "this server sends no mail")

// errAway says that the queue cannot be reached now.
var errAway = rpc.WithRetryAfter(
	rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_MAIL_UNAVAILABLE, "the mail cannot be sent now"), 5*time.Second)

const (
	// sendTimeout bounds the wait for JetStream.
	sendTimeout = 5 * time.Second
	// remembered is for how long the queue knows an id that it had.
	remembered = time.Hour
)

// Config is what a queue is made of. All fields have to be set, except Backoff and Drain.
type Config struct {
	// Service owns the queue: the stream mail-<service>, the subject mail.<service>.
	Service string
	Bus     *event.Bus
	// Key has 32 bytes or more; what lies in the queue is sealed with a key derived
	// from it. After it has changed, mails that still wait are dropped, loudly.
	Key      []byte
	Settings Settings
	Clock    clock.Clock
	Log      *slog.Logger
	// Backoff gives the wait after the delivery that failed with that number, counted from 1;
	// 1, 5, then 30 minutes when nil.
	Backoff func(attempt int) time.Duration
	// Drain is how long deliveries that have begun may still take after the end of
	// Run's context; 10 s when zero.
	Drain time.Duration
}

// Queue takes mails (Send) and delivers them (Run). It is safe for concurrent use.
type Queue struct {
	cfg       Config
	log       *slog.Logger
	sealer    sealer
	renderer  *renderer
	transport *transport // nil: mail is not configured
	metrics   *metrics
}

// New makes a queue. Settings without a host make one whose Send says ErrUnavailable.
func New(cfg Config) (*Queue, error) {
	q := &Queue{cfg: cfg, log: cfg.Log.With("queue", streamName(cfg.Service)), metrics: newMetrics(cfg.Service, cfg.Log)}
	if q.cfg.Backoff == nil {
		q.cfg.Backoff = defaultBackoff
	}
	if q.cfg.Drain <= 0 {
		q.cfg.Drain = defaultDrain
	}
	var err error
	if q.sealer, err = newSealer(cfg.Key, cfg.Service); err != nil {
		return nil, err
	}
	if q.renderer, err = newRenderer(templateFiles); err != nil {
		return nil, err
	}
	if !cfg.Settings.Enabled() {
		return q, nil
	}
	if q.transport, err = newTransport(cfg.Settings); err != nil {
		return nil, err
	}
	return q, nil
}

func streamName(service string) string { return "mail-" + service }
func subject(service string) string    { return "mail." + service }

// Enabled tells whether mails can be sent at all.
func (q *Queue) Enabled() bool { return q.transport != nil }

// Send stores the mail for delivery and returns when JetStream has it. An id that
// was sent within the last hour is not stored again, and is no error.
//
// Errors: one with REASON_MAIL_UNAVAILABLE (unavailable) when no mail server is
// configured (ErrUnavailable) or the queue is away; any other tells of a message
// that no retry makes right.
func (q *Queue) Send(ctx context.Context, m Message) error {
	if err := m.check(); err != nil {
		return err
	}
	if !q.Enabled() {
		return ErrUnavailable
	}
	// Rendered here too, so that a mail that cannot be written is the sender's error and not a lost mail.
	if _, err := q.renderer.render(m, q.cfg.Settings.Product); err != nil {
		return err
	}
	life, err := m.life()
	if err != nil {
		return err
	}
	now := q.cfg.Clock.Now()
	sealed, err := q.sealer.seal(m.ID, envelope{
		To: m.To, Template: m.Template, Locale: m.Locale, Data: m.Data, SentAt: now, ExpiresAt: now.Add(life),
	})
	if err != nil {
		return err
	}
	if err := q.publish(ctx, m.ID, sealed, life); err != nil {
		q.log.WarnContext(ctx, "a mail could not be queued", "mail", m.ID, "template", m.Template, "error", err)
		return errAway
	}
	q.metrics.count(ctx, m.Template, outcomeQueued)
	return nil
}

// publish waits for the acknowledgement. The server itself drops what has lost its
// use (the TTL), so a code does not outlive its minutes there even if nobody works
// on the queue.
func (q *Queue) publish(ctx context.Context, id uuid.UUID, sealed []byte, life time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	msg := nats.NewMsg(subject(q.cfg.Service))
	msg.Header.Set(jetstream.MsgIDHeader, id.String())
	msg.Data = sealed
	js := q.cfg.Bus.JetStream()
	_, err := js.PublishMsg(ctx, msg, jetstream.WithMsgTTL(life))
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		// The first mail ever, or the store was wiped.
		if _, err = q.ensure(ctx); err == nil {
			_, err = js.PublishMsg(ctx, msg, jetstream.WithMsgTTL(life))
		}
	}
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// ensure makes the stream if it is missing. Each service may make its own only, by
// the permissions of its login.
func (q *Queue) ensure(ctx context.Context) (jetstream.Stream, error) {
	return q.cfg.Bus.EnsureQueue(ctx, jetstream.StreamConfig{
		Name:        streamName(q.cfg.Service),
		Description: "Mails of " + q.cfg.Service + " that wait for delivery, sealed.",
		Subjects:    []string{subject(q.cfg.Service)},
		Retention:   jetstream.WorkQueuePolicy,
		MaxAge:      noticeLife,
		Duplicates:  remembered,
		AllowMsgTTL: true,
		Discard:     jetstream.DiscardNew,
		// A flood is turned away at Send instead of filling the disk.
		MaxMsgs:    100_000,
		MaxMsgSize: 32 << 10,
	})
}
