package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// Config says how to reach NATS and how streams are kept.
type Config struct {
	// URL is one or more nats:// URLs, separated by commas. It may carry user
	// and password. Empty with InProcess.
	URL string
	// Name of the client, shown by the server; by custom the service.
	Name string
	// User and Password log in; each service has its own, with rights like its
	// database role's. CredentialsFile is the other way (JWT and seed).
	User, Password  string
	CredentialsFile string
	// Replicas of each stream; zero means 1, production wants 3.
	Replicas int
	// MaxAge is for how long streams keep events; zero means three days.
	MaxAge time.Duration
	// DeadMaxAge is for how long dead letters are kept; zero means 14 days.
	DeadMaxAge time.Duration
	// PublishTimeout bounds the wait for an acknowledgement; zero means 5 s.
	PublishTimeout time.Duration
	// InProcess, if set, connects to a server in this process.
	InProcess nats.InProcessConnProvider
}

// Bus is a connection to NATS with JetStream. It is safe for concurrent use and
// reconnects for as long as it is open.
type Bus struct {
	cfg      Config
	log      *slog.Logger
	conn     *nats.Conn
	js       jetstream.JetStream
	barriers *barriers
	metrics  *metrics
	// unmeasure ends the metrics of the connection.
	unmeasure func() error
}

// Connect opens a bus. A server that is away is no error: the bus connects when
// it comes, and Ready tells. ctx is only for the dialing of now.
func Connect(ctx context.Context, cfg Config, log *slog.Logger) (*Bus, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if cfg.Replicas <= 0 {
		cfg.Replicas = 1
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = 72 * time.Hour
	}
	if cfg.DeadMaxAge <= 0 {
		cfg.DeadMaxAge = 14 * 24 * time.Hour
	}
	if cfg.PublishTimeout <= 0 {
		cfg.PublishTimeout = 5 * time.Second
	}
	m, err := newMetrics()
	if err != nil {
		return nil, err
	}
	b := &Bus{cfg: cfg, log: log, metrics: m}
	if b.conn, err = nats.Connect(cfg.URL, b.options()...); err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	b.js, err = jetstream.New(b.conn,
		jetstream.WithPublishAsyncTimeout(cfg.PublishTimeout),
		jetstream.WithPublishAsyncMaxPending(maxPending),
		jetstream.WithDefaultTimeout(cfg.PublishTimeout))
	if err == nil {
		b.barriers, err = listenForAnswers(b.conn)
	}
	if err == nil {
		b.unmeasure, err = b.measure()
	}
	if err != nil {
		b.conn.Close()
		return nil, fmt.Errorf("set up JetStream: %w", err)
	}
	return b, nil
}

// maxPending is how many messages may wait for their acknowledgement at once.
// Whoever publishes more is held up for a moment.
const maxPending = 8192

func (b *Bus) options() []nats.Option {
	opts := []nats.Option{
		nats.Name(b.cfg.Name),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ReconnectJitter(200*time.Millisecond, time.Second),
		nats.Timeout(3 * time.Second),
		// Two pings of ten seconds find a dead server that sends no reset.
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		// While disconnected, publishing fails at once instead of filling a
		// buffer whose bytes would come out a second time after the relay has
		// published them: the table is the buffer.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("NATS connection lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { b.log.Info("NATS connected again", "server", c.ConnectedServerName()) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			b.log.Warn("NATS error", "subject", subject, "error", err)
		}),
	}
	if b.cfg.User != "" {
		opts = append(opts, nats.UserInfo(b.cfg.User, b.cfg.Password))
	}
	if b.cfg.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(b.cfg.CredentialsFile))
	}
	if b.cfg.InProcess != nil {
		opts = append(opts, nats.InProcessServer(b.cfg.InProcess))
	}
	return opts
}

// Conn is the connection below, for core NATS: pushes and presence.
func (b *Bus) Conn() *nats.Conn { return b.conn }

// JetStream is the API of streams of this connection.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// MaxAge is for how long streams keep events.
func (b *Bus) MaxAge() time.Duration { return b.cfg.MaxAge }

// Connected tells whether the connection stands at this moment.
func (b *Bus) Connected() bool { return b.conn.IsConnected() }

// Ready tells by its error why events cannot be carried now. Give ctx a
// deadline.
func (b *Bus) Ready(ctx context.Context) error {
	if !b.conn.IsConnected() {
		return fmt.Errorf("NATS: %s", b.conn.Status())
	}
	if _, err := b.js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("JetStream: %w", err)
	}
	return nil
}

// Close ends the connection. What is not acknowledged counts as not published.
func (b *Bus) Close() {
	if err := b.unmeasure(); err != nil {
		b.log.Warn("metrics of the bus", "error", err)
	}
	b.barriers.stop()
	b.js.CleanupPublisher()
	b.conn.Close()
}

const (
	// remembered is for how long NATS leaves out an event that is published again: ten times what passes before the relay
	// of an outbox does that. NATS keeps each id of that time in memory. One that comes later changes nothing either:
	// that is what the Mode of a listener is for.
	remembered = 30 * time.Second
	// letterRemembered is the same for dead letters, of which there are few: after ackWait an event is delivered again,
	// and is tried for as long once more, before it is parked again.
	letterRemembered = 4 * ackWait
)

// EnsureStream makes the stream of a domain, or that of its signals, if it is
// missing, and returns it. Whoever the permissions of NATS let may, in production its
// owner alone: whether a stream was lost and made anew shows in the time of its creation, not in who made it.
func (b *Bus) EnsureStream(ctx context.Context, domain string) (jetstream.Stream, error) {
	if of, ok := signalsOf(domain); ok {
		return b.ensureSignals(ctx, of)
	}
	return b.ensure(ctx, jetstream.StreamConfig{
		Name:        StreamName(domain),
		Description: "Domain events of " + domain + ". Can be rebuilt from its outbox.",
		Subjects:    []string{"event." + domain + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    b.cfg.Replicas,
		MaxAge:      b.cfg.MaxAge,
		Duplicates:  min(remembered, b.cfg.MaxAge),
		Discard:     jetstream.DiscardOld,
	})
}

func (b *Bus) ensureDead(ctx context.Context) (jetstream.Stream, error) {
	return b.ensure(ctx, jetstream.StreamConfig{
		Name:        deadStream,
		Description: "Events that a listener could not take. Replayed from the command line.",
		Subjects:    []string{"dead.>"},
		Storage:     jetstream.FileStorage,
		Replicas:    b.cfg.Replicas,
		MaxAge:      b.cfg.DeadMaxAge,
		Duplicates:  min(letterRemembered, b.cfg.DeadMaxAge),
		Discard:     jetstream.DiscardOld,
	})
}

func (b *Bus) ensure(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	// A request that the server took with it when it died is never answered: no
	// caller's longer deadline may wait for it.
	ctx, cancel := context.WithTimeout(ctx, b.cfg.PublishTimeout)
	defer cancel()
	// Look first: the settings of an existing stream are the operator's.
	s, err := b.js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = b.js.CreateStream(ctx, cfg)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			s, err = b.js.Stream(ctx, cfg.Name) // somebody else was quicker, with other settings
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ensure stream %s: %w", cfg.Name, err)
	}
	return s, nil
}

// Publish sends events to the stream of a domain past its outbox, one by one, and
// waits for each acknowledgement: for tools and tests that speak in a domain's name.
// Services use the outbox, and Signal for what is born without a transaction. now
// fills the time of events that have none.
func (b *Bus) Publish(ctx context.Context, domain string, now time.Time, events ...*eventv1.Event) error {
	for _, ev := range events {
		if err := Check(ev); err != nil {
			return err
		}
		if err := Complete(ctx, ev, now); err != nil {
			return err
		}
		msg, err := message(domain, []*eventv1.Event{ev})
		if err != nil {
			return err
		}
		_, err = b.js.PublishMsg(ctx, msg)
		if errors.Is(err, jetstream.ErrNoStreamResponse) {
			if _, err = b.EnsureStream(ctx, domain); err == nil {
				_, err = b.js.PublishMsg(ctx, msg)
			}
		}
		if err != nil {
			return fmt.Errorf("publish %s: %w", msg.Subject, err)
		}
	}
	return nil
}
