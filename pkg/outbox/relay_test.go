package outbox_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// victimEnv makes this test program a process that commits a change and is killed
// before it publishes. Its value is the database's URL.
const victimEnv = "PARLEY_OUTBOX_VICTIM"

// victim commits one change, says so, and waits to be killed. Nothing runs that
// could publish it.
func victim() int {
	ctx := context.Background()
	log := slog.New(slog.DiscardHandler)
	pool, err := postgres.Open(ctx, postgres.Config{URL: os.Getenv(victimEnv)})
	if err != nil {
		return 1
	}
	bus, err := event.Connect(ctx, event.Config{URL: os.Getenv(victimEnv + "_NATS")}, log)
	if err != nil {
		return 1
	}
	if err := change(ctx, outbox.New(pool, bus, "zoo", clock.System(), log), "killed"); err != nil {
		return 1
	}
	_, _ = fmt.Fprintln(os.Stdout, "committed")
	select {}
}

func TestKilledBetweenCommitAndPublish(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+w.db, victimEnv+"_NATS="+w.nats)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "committed\n", line)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait(), "killed")
	require.Empty(t, w.published())

	told := make(chan *eventv1.Event, 10)
	w.clock.Set(time.Now().Add(time.Second))
	w.run(w.outbox(outbox.WithRecovered(func(_ context.Context, events []*eventv1.Event) {
		for _, ev := range events {
			told <- ev
		}
	})))
	w.drained()
	require.Equal(t, []string{"killed"}, keys(w.published()))
	select {
	case ev := <-told:
		require.Equal(t, "killed", ev.GetKey(), "clients are told again")
	case <-time.After(patience):
		require.Fail(t, "the young row was not told of")
	}
}

func TestRowsOfAClockThatWasAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead := w.outbox()
	w.clock.Advance(time.Hour)
	w.change(dead, "from the future") // and its process dies
	w.clock.Advance(-time.Hour)
	w.run(w.outbox())
	w.drained()
	require.Equal(t, []string{"from the future"}, keys(w.published()))
}

func TestRelayTellsOnlyOfYoungRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead := w.outbox()
	w.change(dead, "old")
	w.clock.Advance(2 * time.Minute)
	w.change(dead, "young")
	var mu sync.Mutex
	var told []string
	alive := w.outbox(outbox.WithRecovered(func(_ context.Context, events []*eventv1.Event) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, keys(events)...)
	}))
	stop := w.run(alive)
	require.Eventually(t, func() bool { // after the commit, which shows by itself a moment before
		mu.Lock()
		defer mu.Unlock()
		return len(told) > 0
	}, patience, often)
	stop()
	require.Equal(t, []string{"young"}, told)
	require.Equal(t, []string{"old", "young"}, keys(w.published()))
}

// A row that the stream does not take is told of, although others pass.
func TestRelaySaysWhichRowsFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.bus.JetStream().CreateStream(t.Context(), jetstream.StreamConfig{
		Name: event.StreamName("zoo"), Subjects: []string{"event.zoo.>"},
		Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, DiscardNewPerSubject: true,
	})
	require.NoError(t, err)
	dead := w.outbox()
	w.change(dead, "taken")
	w.change(dead, "refused") // of the same type

	var log logText
	o := outbox.New(w.pool, w.bus, "zoo", w.clock, slog.New(slog.NewTextHandler(&log, nil)),
		outbox.WithGrace(0), outbox.WithPoll(time.Hour), outbox.WithStreamCheck(time.Hour))
	require.NoError(t, o.Prepare(t.Context()))
	w.clock.Advance(time.Second)
	w.run(o)
	require.Eventually(t, func() bool { return w.waiting() == 1 }, patience, often)
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "maximum messages per subject")
}

func TestRelaysOfTwoReplicasPublishEachRowOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead := w.outbox()
	const rows = 300
	for i := range rows {
		w.change(dead, fmt.Sprint("left ", i))
	}
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	acks := countPublished(t, w)
	for range 2 {
		w.run(w.outbox(outbox.WithRelayBatch(20)))
	}
	w.drained()
	require.Len(t, w.published(), rows)
	require.Equal(t, rows, acks(), "JetStream's memory of ids had nothing to do")
}

func TestPublisherAndRelayPublishEachRowOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	acks := countPublished(t, w)
	// The relay looks all the time, and without grace: only the set of rows in
	// flight keeps it from what this process is publishing.
	o := w.outbox(outbox.WithGrace(-time.Second), outbox.WithPoll(time.Millisecond))
	w.run(o)
	const rows = 200
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range rows / 4 {
				if err := change(t.Context(), o, fmt.Sprint(worker, " ", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	w.drained()
	require.Len(t, w.published(), rows)
	// Between the commit and the hand-over a relay that has no grace may win the
	// row; that is what the grace is for. Every row is in the stream once anyway.
	require.GreaterOrEqual(t, acks(), rows)
}

// countPublished counts the messages that are sent to the stream, those that it
// leaves out as duplicates included.
func countPublished(t *testing.T, w *world) func() int {
	t.Helper()
	var mu sync.Mutex
	n := 0
	watcher := (&testkit.Bus{URL: w.nats}).Connect(t)
	sub, err := watcher.Subscribe("event.zoo.>", func(msg *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if msg.Header.Get(jetstream.MsgIDHeader) != "" {
			n++
		}
	})
	require.NoError(t, err)
	require.NoError(t, watcher.Flush())
	return func() int {
		require.NoError(t, watcher.Flush())
		require.NoError(t, sub.Drain())
		require.Eventually(t, func() bool { return !sub.IsValid() }, patience, often, "the subscription is drained")
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

func TestNATSAway(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	w := newWorldAt(t, server.URL)
	o := w.outbox(outbox.WithQueue(64, 1<<20), outbox.WithRelayBatch(10))
	w.run(o)
	w.change(o, "before")
	w.drained()

	server.Kill9()
	var want []string
	for i := range 200 { // more than the queue holds
		id := fmt.Sprintf("away %03d", i)
		w.clock.Advance(time.Millisecond)
		started := time.Now()
		w.change(o, id)
		require.Less(t, time.Since(started), 2*time.Second, "callers are not held up")
		want = append(want, id)
	}
	require.NotZero(t, w.waiting())
	server.Restart()
	w.drained()

	got := slices.DeleteFunc(keys(w.published()), func(key string) bool { return !strings.HasPrefix(key, "away") })
	require.ElementsMatch(t, want, dedupe(got), "nothing is lost")
	// What the publisher tried before it knew may stand anywhere; the relay's
	// rows, which are nearly all, come oldest first.
	require.Equal(t, want[len(want)-1], got[len(got)-1])
}

func TestFrozenNATSHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	w := newWorldAt(t, server.URL)
	o := w.outbox(outbox.WithQueue(16, 1<<20))
	w.run(o)
	w.change(o, "before")
	w.drained()
	server.Pause() // connected as far as anybody knows
	for i := range 50 {
		started := time.Now()
		w.change(o, fmt.Sprint("frozen ", i))
		require.Less(t, time.Since(started), 2*time.Second, "callers are not held up")
	}
	server.Resume()
	w.drained()
	require.Len(t, dedupe(keys(w.published())), 51)
}

func TestLostStreamIsFilledAgain(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateNATS(t)
	w := newWorldAt(t, server.URL)
	o := w.outbox(outbox.WithRelayBatch(3))
	w.run(o)
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("kept %02d", i))
		w.clock.Advance(time.Millisecond)
		w.change(o, want[i])
	}
	w.drained()
	versions := func() (all string) {
		require.NoError(t, w.pool.QueryRow(t.Context(), `SELECT string_agg(xmin::text, ' ' ORDER BY created_at, id) FROM outbox`).Scan(&all))
		return all
	}
	before := versions()
	for range 2 {
		server.Kill9()
		server.Wipe()
		server.Restart()
		require.Eventually(t, func() bool { return w.bus.Connected() && slices.Equal(want, keys(w.published())) }, patience, 100*time.Millisecond,
			"the kept rows are in the new stream, once and in their order")
		require.Eventually(t, func() bool {
			var due bool
			require.NoError(t, w.pool.QueryRow(t.Context(), `SELECT refill_until IS NOT NULL FROM outbox_stream`).Scan(&due))
			return !due
		}, patience, often, "nothing is left to do")
	}
	require.Equal(t, before, versions(), "no row was written again: a crashed database would have to replay it")
}

// TestFillingGoesOn has a process find a stream that another one has begun to fill.
func TestFillingGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.run(w.outbox())
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		var known bool
		err := w.pool.QueryRow(t.Context(), `SELECT created <> '' AND refill_until IS NULL FROM outbox_stream`).Scan(&known)
		return err == nil && known
	}, patience, often, "the stream is known")
	stop()
	o := w.outbox(outbox.WithRelayBatch(2))
	for i := range 7 {
		w.clock.Advance(time.Millisecond)
		w.change(o, fmt.Sprintf("row %d", i)) // left in the table: it does not run
	}
	_, err = w.pool.Exec(t.Context(), `UPDATE outbox SET published_at = created_at`)
	require.NoError(t, err)
	_, err = w.pool.Exec(t.Context(), `
		UPDATE outbox_stream SET (refill_at, refill_id) = (SELECT created_at, id FROM outbox ORDER BY created_at OFFSET 2 LIMIT 1),
			refill_until = (SELECT created_at FROM outbox ORDER BY created_at OFFSET 5 LIMIT 1)`)
	require.NoError(t, err)
	w.run(w.outbox(outbox.WithRelayBatch(2)))
	require.Eventually(t, func() bool {
		var due bool
		require.NoError(t, w.pool.QueryRow(t.Context(), `SELECT refill_until IS NOT NULL FROM outbox_stream`).Scan(&due))
		return !due
	}, patience, often)
	require.Equal(t, []string{"row 3", "row 4", "row 5"}, keys(w.published()), "those after the cursor, up to the end")
}

func TestStopLeavesRowsInTheTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := w.outbox()
	stop := w.run(o)
	w.change(o, "published")
	w.drained()
	stop()
	w.change(o, "left")
	require.Equal(t, 1, w.waiting())
	w.run(w.outbox())
	w.drained()
	require.Equal(t, []string{"published", "left"}, keys(w.published()))
}

func dedupe(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}
