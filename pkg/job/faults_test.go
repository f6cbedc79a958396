package job_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
)

// A clock that was ahead for a while does not stop the jobs for that long.
func TestAStartInTheFutureIsDue(t *testing.T) {
	t.Parallel()
	t.Run("NotedByALeaderBefore", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		pool := w.pool()
		_, err := pool.Exec(t.Context(), `INSERT INTO job_run (name, started_at, ended_at) VALUES ('count', $1, $1)`, w.clock.Now().Add(72*time.Hour))
		require.NoError(t, err)
		var runs atomic.Int32
		w.replica(counter(&runs))
		require.Eventually(t, func() bool { return runs.Load() == 1 }, patience, often, "it runs all the same")
		require.Never(t, func() bool { return runs.Load() > 1 }, 20*often, often, "and once")
	})
	t.Run("NotedByThisClock", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		right := w.clock.Now()
		w.clock.Advance(72 * time.Hour)
		var runs atomic.Int32
		w.replica(counter(&runs))
		require.Eventually(t, func() bool { return runs.Load() == 1 }, patience, often, "a new job runs at once")
		w.clock.Set(right)
		require.Eventually(t, func() bool { return runs.Load() == 2 }, patience, often, "the clock is set right, and it goes on")
		require.Never(t, func() bool { return runs.Load() > 2 }, 20*often, often, "when it is due")
	})
}

// A job whose start cannot be written down is still due, and is counted.
func TestAJobThatIsPutOffIsStillDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pool := w.pool()
	_, err := pool.Exec(t.Context(), `ALTER TABLE job_run ADD CONSTRAINT closed CHECK (name <> 'put')`)
	require.NoError(t, err)
	var runs atomic.Int32
	w.replica(job.Job{Name: "put", Every: time.Hour, Run: func(context.Context) error { runs.Add(1); return nil }})
	require.Eventually(t, func() bool { return counted(t, "job_runs_total", "put", "put off") > 0 }, patience, often, "it is counted")
	require.Zero(t, runs.Load())
	_, err = pool.Exec(t.Context(), `ALTER TABLE job_run DROP CONSTRAINT closed`)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return runs.Load() == 1 }, patience, often, "it does not wait for an hour")
}

// The jobs have ended before another replica may lead, also if a renewal hangs.
func TestTheLeaderStopsInTimeWhenARenewalHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const life = 4 * time.Second
	ended := make(chan time.Time, 1)
	r := job.New(w.pool(), "alpha", w.clock, testkit.Logger(t), job.Lease(life), job.Poll(often))
	require.NoError(t, r.Add(job.Job{Name: "long", Every: time.Hour, Run: func(ctx context.Context) error {
		<-ctx.Done()
		ended <- time.Now()
		return ctx.Err()
	}}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { cancel(); require.NoError(t, <-done) }()

	pool := w.pool()
	renewal := func() (n int) {
		_ = pool.QueryRow(t.Context(), `SELECT renewal FROM job_lease`).Scan(&n)
		return n
	}
	require.Eventually(t, func() bool { return renewal() >= 2 }, patience, often, "it leads and has renewed")
	before := renewal()
	require.Eventually(t, func() bool { return renewal() > before }, patience, time.Millisecond, "it has renewed just now")
	renewed := time.Now()
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SELECT 1 FROM job_lease FOR UPDATE`) // the next one waits
		require.NoError(t, err)
		select {
		case at := <-ended:
			require.Less(t, at.Sub(renewed), life*3/4, "two thirds of the lease, and a busy machine")
		case <-time.After(life + patience):
			require.Fail(t, "the job was not cut off")
		}
		return nil
	}))
}

// Since when a job has not succeeded is told by every leader, whatever the last
// runs did, and also for one that never has.
func TestMetricsTellOfAJobThatFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var fail atomic.Bool
	jobs := func() []job.Job {
		return []job.Job{
			{Name: "never succeeds", Every: time.Hour, Run: func(context.Context) error { return errors.New("no") }},
			{Name: "fails later", Every: time.Hour, Run: func(context.Context) error {
				if fail.Load() {
					return errors.New("no")
				}
				return nil
			}},
		}
	}
	began := float64(w.clock.Now().Unix())
	both := func(failed int64) bool {
		return success(t, "never succeeds") == began && success(t, "fails later") == began &&
			counted(t, "job_runs_total", "never succeeds", "failed") == failed
	}
	one := w.replica(jobs()...)
	require.Eventually(t, func() bool { return both(1) }, patience, often, "the first run")
	fail.Store(true)
	w.clock.Advance(time.Hour)
	require.Eventually(t, func() bool {
		return both(2) && counted(t, "job_runs_total", "fails later", "failed") == 1
	}, patience, often, "the second run")
	one.stop()
	w.replica(jobs()...)
	require.Eventually(t, func() bool { return both(2) }, patience, often, "the next leader knows as much")
}

// What is told of partitions does not stand still when the job fails.
func TestMetricsTellWhenPartitionsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pool := w.pool()
	c := clock.NewFake(w.clock.Now())
	ends := func() time.Time {
		at, _ := told(t, "partition_ends_timestamp_seconds", "service", "measured alpha")
		return time.Unix(int64(at), 0).UTC()
	}
	made := func() job.Job {
		return job.Partitions("measured alpha", pool, c, testkit.Logger(t), postgres.Partitions{Table: "outbox"})
	}
	require.NoError(t, made().Run(t.Context()))
	end := time.Date(2027, 3, 22, 0, 0, 0, 0, time.UTC)
	require.Equal(t, end, ends(), "today and a week")

	c.Advance(5 * 24 * time.Hour)
	locked, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, locked.Rollback(context.WithoutCancel(t.Context()))) }()
	_, err = locked.Exec(t.Context(), `LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE`)
	require.NoError(t, err)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.Error(t, made().Run(short), "a lock is in the way")
	require.Equal(t, end, ends(), "still that day, which has come nearer")
}

// A leader that cannot make partitions tells how far those go that there are.
func TestPartitionsEndWithTheFirstHole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pool := w.pool()
	p := postgres.Partitions{Table: "outbox"}
	now := w.clock.Now()
	none, err := p.Ends(t.Context(), pool, now)
	require.NoError(t, err)
	require.Equal(t, now, none)
	until, err := p.Ensure(t.Context(), pool, now)
	require.NoError(t, err)
	ends, err := p.Ends(t.Context(), pool, now)
	require.NoError(t, err)
	require.Equal(t, until, ends)
	_, err = pool.Exec(t.Context(), `DROP TABLE outbox_p20270317`)
	require.NoError(t, err)
	ends, err = p.Ends(t.Context(), pool, now)
	require.NoError(t, err)
	require.Equal(t, time.Date(2027, 3, 17, 0, 0, 0, 0, time.UTC), ends)
}
