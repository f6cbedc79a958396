package job_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
)

const (
	patience = 20 * time.Second
	often    = 10 * time.Millisecond
	lease    = 1500 * time.Millisecond
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/exec.(*Cmd).Wait"))
}

// world is the database of one service and its clock.
type world struct {
	t     *testing.T
	url   string
	clock *clock.Fake
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, url: testkit.NewDatabase(t, testkit.Schema{Service: "alpha"}).URL("alpha"),
		clock: clock.NewFake(time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)),
	}
}

// replica is one process of the service: its own pool, its own runner.
type replica struct {
	*job.Runner
	pool *pgxpool.Pool
	stop func()
}

func (w *world) pool() *pgxpool.Pool {
	w.t.Helper()
	pool, err := postgres.Open(w.t.Context(), postgres.Config{URL: w.url, MaxConns: 4})
	require.NoError(w.t, err)
	w.t.Cleanup(pool.Close)
	return pool
}

func (w *world) replica(jobs ...job.Job) *replica {
	w.t.Helper()
	r := &replica{pool: w.pool()}
	r.Runner = job.New(r.pool, "alpha", w.clock, testkit.Logger(w.t), job.Lease(lease), job.Poll(often))
	require.NoError(w.t, r.Add(jobs...))
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-done)
	})
	w.t.Cleanup(r.stop)
	return r
}

func counter(n *atomic.Int32) job.Job {
	return job.Job{Name: "count", Every: time.Hour, Run: func(context.Context) error { n.Add(1); return nil }}
}

func TestOneLeaderRunsAJobWhenItIsDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var runs atomic.Int32
	one, two := w.replica(counter(&runs)), w.replica(counter(&runs))
	require.Eventually(t, func() bool { return runs.Load() == 1 }, patience, often, "a new job runs at once")
	require.NotEqual(t, one.Leading(), two.Leading(), "exactly one leads")
	require.Never(t, func() bool { return runs.Load() != 1 || one.Leading() == two.Leading() }, 2*lease, often, "and stays so")
	for want := int32(2); want < 5; want++ {
		w.clock.Advance(time.Hour)
		require.Eventually(t, func() bool { return runs.Load() == want }, patience, often, "due again")
	}
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	t.Run("AtOnceWhenTheLeaderStops", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var runs atomic.Int32
		one := w.replica(counter(&runs))
		require.Eventually(t, func() bool { return runs.Load() == 1 }, patience, often, "the first leads")
		two := w.replica(counter(&runs))
		one.stop()
		require.Eventually(t, two.Leading, patience, often, "the second takes over")
		require.Never(t, func() bool { return runs.Load() != 1 }, lease/2, often, "a job that ran a moment ago does not run again")
		w.clock.Advance(time.Hour)
		require.Eventually(t, func() bool { return runs.Load() == 2 }, patience, often, "but when it is due")
	})
	t.Run("AfterTheLeaseOfADeadOne", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		// A leader that died: nobody gives this lease back or renews it.
		_, err := w.pool().Exec(t.Context(), `INSERT INTO job_lease VALUES ('jobs', 'the dead', 7, '2999-01-01')`)
		require.NoError(t, err)
		var runs atomic.Int32
		two := w.replica(counter(&runs))
		require.Never(t, two.Leading, lease/2, often, "the lease is respected")
		require.Eventually(t, two.Leading, patience, often, "until it runs out, whatever the clocks say")
		require.Eventually(t, func() bool { return runs.Load() == 1 }, patience, often, "the jobs go on")
	})
	t.Run("TheLeaderStopsItsJobsWhenTheDatabaseIsAway", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		ended := make(chan error, 1)
		one := w.replica(job.Job{Name: "long", Every: time.Hour, Run: func(ctx context.Context) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}})
		require.Eventually(t, one.Leading, patience, often, "leads")
		require.Eventually(t, func() bool {
			var n int
			err := one.pool.QueryRow(t.Context(), `SELECT count(*) FROM job_run`).Scan(&n)
			return err == nil && n == 1
		}, patience, often, "the job has begun")
		one.pool.Close()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(patience):
			require.Fail(t, "the job was not cut off")
		}
		require.Eventually(t, func() bool { return !one.Leading() }, patience, often, "and it knows")
	})
}

func TestFailingJobIsTriedAgainAndDoesNotStopOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var bad, worse, good atomic.Int32
	r := w.replica(
		job.Job{Name: "bad", Every: time.Minute, Run: func(context.Context) error { bad.Add(1); return errors.New("no") }},
		job.Job{Name: "worse", Every: time.Minute, Run: func(context.Context) error {
			worse.Add(1)
			return broken(nil)
		}},
		job.Job{Name: "good", Every: time.Minute, Run: func(context.Context) error { good.Add(1); return nil }},
	)
	for want := int32(1); want <= 3; want++ {
		require.Eventually(t, func() bool { return bad.Load() == want && worse.Load() == want && good.Load() == want }, patience, often, "each has run")
		w.clock.Advance(time.Minute)
	}
	require.Eventually(t, func() bool {
		var text string
		err := r.pool.QueryRow(t.Context(), `SELECT error FROM job_run WHERE name = 'worse'`).Scan(&text)
		return err == nil && len(text) > 5 && text[:5] == "panic"
	}, patience, often, "the record tells why")
}

// broken panics on an empty list.
func broken(list []error) error { return list[0] }

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	r := job.New(nil, "alpha", clock.System(), testkit.Logger(t))
	var n atomic.Int32
	require.NoError(t, r.Add(counter(&n)))
	require.Error(t, r.Add(counter(&n)), "there twice")
	require.Error(t, r.Add(job.Job{Name: "idle", Every: time.Hour}), "no work")
	require.Error(t, r.Add(job.Job{Name: "always", Run: func(context.Context) error { return nil }}), "no interval")
}

func TestRuntimeJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pool := w.pool()
	t.Run("PartitionsAreMadeAheadAndDropped", func(t *testing.T) {
		t.Parallel()
		c := clock.NewFake(w.clock.Now())
		j := job.Partitions("alpha", pool, c, testkit.Logger(t), postgres.Partitions{Table: "outbox", Keep: 3 * 24 * time.Hour})
		for range 20 {
			require.NoError(t, j.Run(t.Context()))
			_, err := pool.Exec(t.Context(), `INSERT INTO outbox VALUES (gen_random_uuid(), $1, '', NULL, $1)`, c.Now().Add(7*24*time.Hour))
			require.NoError(t, err, "a week ahead there is a place")
			c.Advance(24 * time.Hour)
		}
		var n int
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox'::regclass`).Scan(&n))
		require.Equal(t, 3+1+7, n, "three days, today, a week")
	})
	t.Run("InboxIsPrunedInBatches", func(t *testing.T) {
		t.Parallel()
		_, err := pool.Exec(t.Context(), `INSERT INTO inbox SELECT 'l', gen_random_uuid(), $1::timestamptz - n * interval '1 second' FROM generate_series(0, 12000) AS n`, w.clock.Now())
		require.NoError(t, err)
		require.NoError(t, job.PruneInbox(pool, w.clock, 100*time.Second).Run(t.Context()))
		var n int
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM inbox`).Scan(&n))
		require.Equal(t, 101, n)
	})
}

// A job that neither ends nor heeds its context is left behind with the process
// that runs it: another replica takes over all jobs.
func TestAJobThatHangsLosesTheLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := make(chan struct{})
	var hung, good atomic.Int32
	hangs := job.Job{Name: "hangs", Every: time.Hour, Timeout: 50 * time.Millisecond, Run: func(context.Context) error {
		if hung.Add(1) == 1 {
			<-release
		}
		return nil
	}}
	healthy := job.Job{Name: "healthy", Every: time.Minute, Run: func(context.Context) error { good.Add(1); return nil }}
	one := w.replica(hangs, healthy)
	require.Eventually(t, func() bool { return hung.Load() == 1 && good.Load() == 1 }, patience, often, "the first leads")
	two := w.replica(hangs, healthy)
	require.Eventually(t, func() bool { return two.Leading() && !one.Leading() }, patience, often, "the second takes over")
	w.clock.Advance(time.Minute)
	require.Eventually(t, func() bool { return good.Load() == 2 }, patience, often, "the other jobs go on")
	w.clock.Advance(time.Hour)
	require.Eventually(t, func() bool { return hung.Load() == 2 && good.Load() == 3 }, patience, often, "and the one that hung is tried again")
	close(release)
	two.stop()
	require.Eventually(t, one.Leading, patience, often, "who hung may lead again when that is over")
}

func TestARunIsCutOffAfterItsTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica(job.Job{Name: "slow", Every: time.Hour, Timeout: 20 * time.Millisecond, Run: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	require.Eventually(t, func() bool {
		var text string
		err := r.pool.QueryRow(t.Context(), `SELECT error FROM job_run WHERE name = 'slow'`).Scan(&text)
		return err == nil && text == context.DeadlineExceeded.Error()
	}, patience, often, "the record tells why")
	require.True(t, r.Leading(), "it has heeded its end")
}
