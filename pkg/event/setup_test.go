package event_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	patience = 20 * time.Second
	often    = 10 * time.Millisecond
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/exec.(*Cmd).Wait"))
}

// world is one bus, and one database of the service "alpha" that listens to the
// domain "zoo".
type world struct {
	t    *testing.T
	url  string
	bus  *event.Bus
	pool *pgxpool.Pool
	// clock starts at the real time, because streams keep theirs.
	clock *clock.Fake
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldAt(t, testkit.NATS(t).URL)
}

func newWorldAt(t *testing.T, url string) *world {
	t.Helper()
	return newWorldOn(t, url, testkit.NewDatabase(t, testkit.Schema{Service: "alpha"}))
}

func newWorldOn(t *testing.T, url string, db *testkit.Database) *world {
	t.Helper()
	w := &world{t: t, url: url, clock: clock.NewFake(time.Now())}
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: db.URL("alpha")})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	w.pool = pool
	_, err = pool.Exec(t.Context(), `CREATE TABLE effect (key text PRIMARY KEY, n int NOT NULL, version bigint NOT NULL, state text NOT NULL)`)
	require.NoError(t, err)
	w.bus = w.connect()
	return w
}

func (w *world) connect() *event.Bus {
	w.t.Helper()
	bus, err := event.Connect(w.t.Context(), event.Config{URL: w.url, Name: "alpha", PublishTimeout: 2 * time.Second}, testkit.Logger(w.t))
	require.NoError(w.t, err)
	w.t.Cleanup(bus.Close)
	return bus
}

// listen runs listeners until the test, or the returned function, ends it.
func (w *world) listen(listeners []event.Listener, opts ...event.Option) (stop func()) {
	w.t.Helper()
	cancel, wait := w.listenUntil(listeners, opts...)
	return func() { cancel(); wait() }
}

// listenUntil is listen whose end is told and awaited apart.
func (w *world) listenUntil(listeners []event.Listener, opts ...event.Option) (cancel context.CancelFunc, wait func()) {
	w.t.Helper()
	opts = append([]event.Option{event.Heartbeat(500 * time.Millisecond), event.Backoff(quick)}, opts...)
	ls := event.NewListeners("alpha", w.bus, w.pool, w.clock, testkit.Logger(w.t), opts...)
	require.NoError(w.t, ls.Add(listeners...))
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- ls.Run(ctx) }()
	wait = sync.OnceFunc(func() { require.NoError(w.t, <-done) })
	w.t.Cleanup(func() { cancel(); wait() })
	return cancel, wait
}

func quick(int) time.Duration { return 20 * time.Millisecond }

// publish sends an event of the domain "zoo" as its outbox would.
func (w *world) publish(events ...*eventv1.Event) {
	w.t.Helper()
	require.NoError(w.t, w.tryPublish(events...))
}

func (w *world) tryPublish(events ...*eventv1.Event) error {
	if _, err := w.bus.EnsureStream(w.t.Context(), "zoo"); err != nil {
		return err
	}
	for _, ev := range events {
		if err := w.send(ev); err != nil {
			return err
		}
	}
	return nil
}

// send sends events as one row of the outbox.
func (w *world) send(events ...*eventv1.Event) error {
	for _, ev := range events {
		if err := event.Complete(w.t.Context(), ev, w.clock.Now()); err != nil {
			return err
		}
	}
	messages, err := event.Messages("zoo", events)
	if err != nil {
		return err
	}
	for _, msg := range messages {
		if _, err = w.bus.JetStream().PublishMsg(w.t.Context(), msg); err != nil {
			return err
		}
	}
	return nil
}

// again sends the bytes of an event a second time, past JetStream's own memory of
// ids.
func (w *world) again(ev *eventv1.Event) {
	w.t.Helper()
	messages, err := event.Messages("zoo", []*eventv1.Event{ev})
	require.NoError(w.t, err)
	messages[0].Header.Del("Nats-Msg-Id")
	_, err = w.bus.JetStream().PublishMsg(w.t.Context(), messages[0])
	require.NoError(w.t, err)
}

func fed(key string, version int64, state string) *eventv1.Event {
	return event.New("animal.fed", key, version, wrapperspb.String(state))
}

// count is a listener's effect that shows how often it happened.
func count(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, _ *wrapperspb.StringValue) error {
	_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1, 1, 0, '') ON CONFLICT (key) DO UPDATE SET n = effect.n + 1`, ev.GetKey())
	return err
}

// keepHighest is the upsert of a listener by version.
func keepHighest(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, payload *wrapperspb.StringValue) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO effect VALUES ($1, 1, $2, $3)
		ON CONFLICT (key) DO UPDATE SET n = effect.n + 1, version = excluded.version, state = excluded.state
		WHERE effect.version < excluded.version`, ev.GetKey(), ev.GetKeyVersion(), payload.GetValue())
	return err
}

// effect is what stands in the table under a key.
func (w *world) effect(key string) (n int, version int64, state string) {
	w.t.Helper()
	err := w.pool.QueryRow(w.t.Context(), `SELECT n, version, state FROM effect WHERE key = $1`, key).Scan(&n, &version, &state)
	if err != nil {
		require.ErrorIs(w.t, err, pgx.ErrNoRows)
	}
	return n, version, state
}

// settled waits until the listener has nothing more to do.
func (w *world) settled(durable string) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		cons, err := w.bus.JetStream().Consumer(w.t.Context(), event.StreamName("zoo"), durable)
		if err != nil {
			return false
		}
		info, err := cons.Info(w.t.Context())
		return err == nil && info.NumPending == 0 && info.NumAckPending == 0
	}, patience, often, "the consumer %s has settled everything", durable)
}

// counting wraps a handler to count its calls.
func counting(calls *atomic.Int32, l event.Listener) event.Listener {
	handle := l.Handle
	l.Handle = func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) error {
		calls.Add(1)
		return handle(ctx, tx, ev)
	}
	return l
}
