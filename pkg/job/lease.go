package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// leaseName is the one lease of a service.
const leaseName = "jobs"

// acquire waits until this process holds the lease; false says that ctx ended
// first.
func (r *Runner) acquire(ctx context.Context) bool {
	ticker := time.NewTicker(r.opts.lease / 5)
	defer ticker.Stop()
	var seen int64 // the renewal that was last seen
	var since time.Time
	for ctx.Err() == nil {
		got, renewal, err := r.try(ctx, seen, !since.IsZero() && time.Since(since) >= r.opts.lease)
		switch {
		case got:
			return true
		case err != nil && ctx.Err() == nil:
			r.log.WarnContext(ctx, "lease of jobs cannot be read", "error", err)
			since = time.Time{} // what happened meanwhile is not known
		case since.IsZero() || renewal != seen:
			seen, since = renewal, time.Now()
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return false
}

// try takes the lease if it is free, was given back, or is dead: its renewal
// stood at seen for the lease's life. Compare and set in one statement, so of two
// that try one wins.
func (r *Runner) try(ctx context.Context, seen int64, dead bool) (got bool, renewal int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.lease/3)
	defer cancel()
	now := r.clock.Now()
	tag, err := r.pool.Exec(ctx, `
		INSERT INTO job_lease (name, holder, renewal, renewed_at) VALUES ($1, $2, 1, $3)
		ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, renewal = job_lease.renewal + 1, renewed_at = excluded.renewed_at
		WHERE job_lease.holder IN ('', excluded.holder) OR ($4 AND job_lease.renewal = $5)`,
		leaseName, r.holder, now, dead, seen)
	if err != nil {
		return false, 0, fmt.Errorf("take lease: %w", err)
	}
	if tag.RowsAffected() == 1 {
		return true, 0, nil
	}
	err = r.pool.QueryRow(ctx, `SELECT renewal FROM job_lease WHERE name = $1`, leaseName).Scan(&renewal)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, 0, fmt.Errorf("read lease: %w", err)
	}
	return false, renewal, nil
}

// renew returns when the lease is lost or about to be: another replica waits for
// its whole life, so two thirds of it leave time to stop.
func (r *Runner) renew(ctx context.Context) {
	ticker := time.NewTicker(r.opts.lease / 5)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		asked := time.Now()
		mine, err := r.renewOnce(ctx)
		switch {
		case err == nil && mine:
			last = asked
		case err == nil:
			r.log.WarnContext(ctx, "lease of jobs was taken over")
			return
		case ctx.Err() != nil:
			return
		default:
			r.log.WarnContext(ctx, "lease of jobs cannot be renewed", "error", err)
		}
		if time.Since(last) > r.opts.lease*2/3 {
			return
		}
	}
}

func (r *Runner) renewOnce(ctx context.Context) (mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.lease/3)
	defer cancel()
	tag, err := r.pool.Exec(ctx, `UPDATE job_lease SET renewal = renewal + 1, renewed_at = $3 WHERE name = $1 AND holder = $2`,
		leaseName, r.holder, r.clock.Now())
	if err != nil {
		return false, fmt.Errorf("renew lease: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// release gives the lease back, so that nobody has to wait for its end. ctx has
// ended already.
func (r *Runner) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, err := r.pool.Exec(ctx, `UPDATE job_lease SET holder = '', renewal = renewal + 1 WHERE name = $1 AND holder = $2`, leaseName, r.holder)
	if err != nil {
		r.log.WarnContext(ctx, "lease of jobs was not given back: it runs out", "error", err)
	}
}

// lastRun is when a job last started; the zero time if never. It also takes note
// of a last success that another process had.
func (r *Runner) lastRun(ctx context.Context, name string) (time.Time, error) {
	var at time.Time
	var done *time.Time
	err := r.pool.QueryRow(ctx, `SELECT started_at, CASE WHEN error = '' THEN ended_at END FROM job_run WHERE name = $1`, name).Scan(&at, &done)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, nil
	}
	if err == nil && done != nil {
		r.succeeded(name, *done)
	}
	return at, err
}

func (r *Runner) noteStart(ctx context.Context, name string, at time.Time) error {
	_, err := r.pool.Exec(ctx, `
		INSERT INTO job_run (name, started_at) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, ended_at = NULL, error = ''`, name, at)
	return err
}

func (r *Runner) noteEnd(ctx context.Context, name string, at time.Time, cause error) error {
	text := ""
	if cause != nil {
		text = cause.Error()
	}
	_, err := r.pool.Exec(ctx, `UPDATE job_run SET ended_at = $2, error = $3 WHERE name = $1`, name, at, text)
	return err
}
