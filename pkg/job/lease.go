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

// acquire waits until this process holds the lease, and returns when it asked for
// it: the answer may have been long on its way, and others count from the
// statement. ok is false if ctx ended first.
func (r *Runner) acquire(ctx context.Context) (asked time.Time, ok bool) {
	ticker := time.NewTicker(r.opts.lease / 5)
	defer ticker.Stop()
	var seen int64 // the renewal that was last seen
	var since time.Time
	for ctx.Err() == nil {
		asked = time.Now()
		got, renewal, err := r.try(ctx, seen, !since.IsZero() && time.Since(since) >= r.opts.lease)
		switch {
		case got:
			return asked, true
		case err != nil && ctx.Err() == nil:
			r.log.WarnContext(ctx, "lease of jobs cannot be read", "error", err)
			since = time.Time{} // what happened meanwhile is not known
		case since.IsZero() || renewal != seen:
			seen, since = renewal, time.Now()
		}
		select {
		case <-ctx.Done():
			return asked, false
		case <-ticker.C:
		}
	}
	return asked, false
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
// its whole life since a renewal was asked for, so two thirds of it leave time to
// stop. last is when the lease was asked for; no attempt lasts beyond the two
// thirds.
func (r *Runner) renew(ctx context.Context, last time.Time) {
	ticker := time.NewTicker(r.opts.lease / 5)
	defer ticker.Stop()
	for {
		safe := last.Add(r.opts.lease * 2 / 3)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(safe)):
			return
		case <-ticker.C:
		}
		asked := time.Now()
		mine, err := r.renewOnce(ctx, safe)
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
	}
}

func (r *Runner) renewOnce(ctx context.Context, until time.Time) (mine bool, err error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, r.opts.lease/3)
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
	err := r.pool.QueryRow(ctx, `SELECT started_at, succeeded_at FROM job_run WHERE name = $1`, name).Scan(&at, &done)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, nil
	}
	if err == nil && done != nil {
		r.succeeded(name, *done)
	}
	return at, err
}

// noteStart also takes note of since when a job that never succeeded has not.
func (r *Runner) noteStart(ctx context.Context, name string, at time.Time) error {
	var since time.Time
	err := r.pool.QueryRow(ctx, `
		INSERT INTO job_run (name, started_at, succeeded_at) VALUES ($1, $2, $2)
		ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, ended_at = NULL, error = '',
			succeeded_at = COALESCE(job_run.succeeded_at, excluded.succeeded_at)
		RETURNING succeeded_at`, name, at).Scan(&since)
	if err == nil {
		r.succeeded(name, since)
	}
	return err
}

func (r *Runner) noteEnd(ctx context.Context, name string, at time.Time, cause error) error {
	text := ""
	if cause != nil {
		text = cause.Error()
	}
	_, err := r.pool.Exec(ctx, `
		UPDATE job_run SET ended_at = $2, error = $3, succeeded_at = CASE WHEN $3 = '' THEN $2 ELSE succeeded_at END
		WHERE name = $1`, name, at, text)
	return err
}
