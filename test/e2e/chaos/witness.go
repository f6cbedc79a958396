package chaos

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

const (
	witnessName = "witness"
	// poisoned begins the keys of events that are bad on purpose.
	poisoned = "poison-"
	// attempts is how often the witness tries what it cannot take.
	attempts = 3
)

// listened are the events that the witness is told of, with their domains.
var listened = map[string]string{
	"account.registered":   "auth",
	"user.created":         "user",
	"conversation.created": "messaging",
	"message.created":      "messaging",
}

// witness is a service beside the product's, such as one that notifies people:
// whatever happens, it wants to be told of it, once. It counts in a database of
// its own, by the runtime that all services share.
type witness struct {
	pool *pgxpool.Pool
	bus  *event.Bus
	// sick makes it fail on poisoned events.
	sick atomic.Bool
}

// newWitness starts a witness, which listens until the test ends.
func newWitness(t testing.TB, sys *system.System) (*witness, error) {
	migrations, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	url := sys.Postgres.NewDatabase(t, testkit.Schema{Service: witnessName, Migrations: migrations}).URL(witnessName)
	log := slog.New(slog.DiscardHandler) // it complains of every fault
	w := &witness{}
	if w.pool, err = postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 10, ApplicationName: witnessName}); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	t.Cleanup(w.pool.Close)
	if w.bus, err = event.Connect(t.Context(), event.Config{URL: sys.NATS.URL, Name: witnessName}, log); err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	t.Cleanup(w.bus.Close)
	listeners := event.NewListeners(witnessName, w.bus, w.pool, clock.System(), log, event.MaxAttempts(attempts),
		event.Backoff(func(int) time.Duration { return 200 * time.Millisecond }))
	for typ, source := range listened {
		if err := listeners.Add(event.Listener{Source: source, Type: typ, Mode: event.Once, Handle: w.told}); err != nil {
			return nil, fmt.Errorf("listen to %s: %w", typ, err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- listeners.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Errorf("the witness ended: %v", err)
		}
	})
	return w, nil
}

func (w *witness) told(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) error {
	if strings.HasPrefix(ev.GetKey(), poisoned) && w.sick.Load() {
		return fmt.Errorf("%s makes sick", ev.GetKey())
	}
	_, err := tx.Exec(ctx, `INSERT INTO told (type, key, key_version) VALUES ($1, $2, $3)`, ev.GetType(), ev.GetKey(), ev.GetKeyVersion())
	if err != nil {
		return fmt.Errorf("note what was told: %w", err)
	}
	return nil
}

// count is how often the witness was told of something of a type, and of how many
// things.
type count struct{ Told, Things int }

// counts are those of all types, without the poisoned.
func (w *witness) counts(ctx context.Context) (map[string]count, error) {
	rows, err := w.pool.Query(ctx, `
		SELECT type, count(*), count(DISTINCT (key, key_version)) FROM told
		WHERE NOT starts_with(key, $1) GROUP BY type`, poisoned)
	if err != nil {
		return nil, fmt.Errorf("count what was told: %w", err)
	}
	all := map[string]count{}
	var typ string
	var n count
	_, err = pgx.ForEachRow(rows, []any{&typ, &n.Told, &n.Things}, func() error {
		all[typ] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count what was told: %w", err)
	}
	return all, nil
}

// check waits until the witness has been told of as many things as there are, and
// says whether of any one twice, or of one that does not exist.
func (w *witness) check(ctx context.Context, things map[string]int) error {
	var got map[string]count
	var err error
	told := until(ctx, func() bool {
		if got, err = w.counts(ctx); err != nil {
			return false
		}
		for typ, n := range things {
			if got[typ].Things < n {
				return false
			}
		}
		return true
	})
	for typ, n := range things {
		switch {
		case err != nil:
			return err
		case !told && got[typ].Things < n:
			return fmt.Errorf("after %s the witness has been told of %d things of type %s, there are %d", patience, got[typ].Things, typ, n)
		case got[typ].Things > n:
			return fmt.Errorf("the witness has been told of %d things of type %s, there are %d", got[typ].Things, typ, n)
		case got[typ].Told != n:
			return fmt.Errorf("the witness has been told %d times of %d things of type %s", got[typ].Told, n, typ)
		}
	}
	return nil
}

// toldOf says how often the witness was told of a key.
func (w *witness) toldOf(ctx context.Context, key string) (n int, err error) {
	if err = w.pool.QueryRow(ctx, `SELECT count(*) FROM told WHERE key = $1`, key).Scan(&n); err != nil {
		return 0, fmt.Errorf("count what was told: %w", err)
	}
	return n, nil
}

// poison publishes an event that no listener of its type can take, and one that
// only the witness cannot. It returns their keys.
func (w *witness) poison(ctx context.Context) (hopeless, curable string, err error) {
	w.sick.Store(true)
	hopeless, curable = poisoned+uuid.NewString(), poisoned+uuid.NewString()
	err = w.bus.Publish(ctx, "auth", time.Now(),
		event.New("account.registered", hopeless, 1, &authv1.AccountRegistered{AccountId: "nobody"}))
	if err == nil {
		err = w.bus.Publish(ctx, "messaging", time.Now(), event.New("message.created", curable, 1, nil))
	}
	if err != nil {
		return "", "", fmt.Errorf("publish poison: %w", err)
	}
	return hopeless, curable, nil
}

// parked waits until an event is among the dead letters of a service.
func (w *witness) parked(ctx context.Context, service, key string) error {
	var err error
	found := until(ctx, func() bool {
		var letters []event.Dead
		if letters, err = w.bus.ListDead(ctx, event.DeadFilter{Service: service}); err != nil {
			return false
		}
		for _, d := range letters {
			if d.Letter.GetEvent().GetKey() == key {
				return true
			}
		}
		return false
	})
	if !found {
		return errors.Join(fmt.Errorf("%s did not park the poisoned event within %s", service, patience), err)
	}
	return nil
}

// cure makes the witness take what it could not, and has it told again.
func (w *witness) cure(ctx context.Context, keys []string) error {
	w.sick.Store(false)
	n, err := w.bus.Replay(ctx, event.DeadFilter{Service: witnessName, Listener: "message.created"})
	if err != nil {
		return fmt.Errorf("replay dead letters: %w", err)
	}
	if n != len(keys) {
		return fmt.Errorf("%d dead letters were replayed instead of %d", n, len(keys))
	}
	for _, key := range keys {
		var told int
		if !until(ctx, func() bool { told, err = w.toldOf(ctx, key); return told > 0 }) || told != 1 {
			return errors.Join(fmt.Errorf("after the replay the witness was told %d times of a cured event", told), err)
		}
	}
	return nil
}
