package outbox_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	patience = 20 * time.Second
	often    = 20 * time.Millisecond
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim())
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/exec.(*Cmd).Wait"))
}

// world is the database and the bus of one service, "zoo".
type world struct {
	t     *testing.T
	db    string
	nats  string
	bus   *event.Bus
	pool  *pgxpool.Pool
	clock *clock.Fake
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldAt(t, testkit.NATS(t).URL)
}

func newWorldAt(t *testing.T, nats string) *world {
	t.Helper()
	w := &world{t: t, nats: nats, clock: clock.NewFake(time.Now()), db: testkit.NewDatabase(t, testkit.Schema{Service: "zoo"}).URL("zoo")}
	var err error
	w.pool, err = postgres.Open(t.Context(), postgres.Config{URL: w.db})
	require.NoError(t, err)
	t.Cleanup(w.pool.Close)
	_, err = w.pool.Exec(t.Context(), `CREATE TABLE change (id text PRIMARY KEY)`)
	require.NoError(t, err)
	w.bus, err = event.Connect(t.Context(), event.Config{URL: nats, Name: "zoo", PublishTimeout: time.Second}, testkit.Logger(t))
	require.NoError(t, err)
	t.Cleanup(w.bus.Close)
	return w
}

// outbox makes one replica's outbox, with waits that tests can bear.
func (w *world) outbox(opts ...outbox.Option) *outbox.Outbox {
	w.t.Helper()
	opts = append([]outbox.Option{
		outbox.WithGrace(0), outbox.WithPoll(50 * time.Millisecond), outbox.WithStreamCheck(100 * time.Millisecond),
	}, opts...)
	o := outbox.New(w.pool, w.bus, "zoo", w.clock, testkit.Logger(w.t), opts...)
	require.NoError(w.t, o.Prepare(w.t.Context()))
	return o
}

// run runs an outbox until the test, or the returned function, ends it.
func (w *world) run(o *outbox.Outbox) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-done)
	})
	w.t.Cleanup(stop)
	return stop
}

// change makes a change and emits an event that tells of it.
func (w *world) change(o *outbox.Outbox, id string) {
	w.t.Helper()
	require.NoError(w.t, change(w.t.Context(), o, id))
}

func change(ctx context.Context, o *outbox.Outbox, id string) error {
	return o.Tx(ctx, func(tx pgx.Tx, emit func(...*eventv1.Event) error) error {
		if _, err := tx.Exec(ctx, `INSERT INTO change VALUES ($1)`, id); err != nil {
			return err
		}
		return emit(fed(id))
	})
}

func fed(key string) *eventv1.Event {
	return event.New("animal.fed", key, 1, wrapperspb.String("full"))
}

// waiting is how many rows are not marked.
func (w *world) waiting() int {
	w.t.Helper()
	var n int
	require.NoError(w.t, w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM outbox WHERE published_at IS NULL`).Scan(&n))
	return n
}

// drained waits until everything is published and marked.
func (w *world) drained() {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.waiting() == 0 }, patience, often, "everything is published and marked")
}

// published are the events in the stream, in its order; none while the stream
// cannot be read. Conditions that are polled call it: it must not end the test.
func (w *world) published() []*eventv1.Event {
	w.t.Helper()
	stream, err := w.bus.JetStream().Stream(w.t.Context(), event.StreamName("zoo"))
	if err != nil {
		return nil // the stream, or the server, is not there now
	}
	info := stream.CachedInfo().State
	out := make([]*eventv1.Event, 0, info.Msgs)
	for seq := info.FirstSeq; seq <= info.LastSeq && info.Msgs > 0; seq++ {
		raw, err := stream.GetMsg(w.t.Context(), seq)
		if err != nil {
			return nil
		}
		events, err := event.Read(raw.Header, raw.Data)
		require.NoError(w.t, err)
		out = append(out, events...)
	}
	return out
}

// logText keeps what was logged.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func keys(events []*eventv1.Event) []string {
	out := make([]string, len(events))
	for i, ev := range events {
		out[i] = ev.GetKey()
	}
	return out
}
