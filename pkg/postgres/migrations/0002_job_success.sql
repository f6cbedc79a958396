-- +goose Up

-- When a job last succeeded; until it has, when it first started. Its own column,
-- because the next start and a failure overwrite what the last run did, and an
-- alert asks for how long a job has not succeeded. NULL only for rows of programs
-- that do not know it yet.
ALTER TABLE job_run ADD COLUMN succeeded_at timestamptz;

UPDATE job_run SET succeeded_at = CASE WHEN error = '' AND ended_at IS NOT NULL THEN ended_at ELSE started_at END;

-- +goose Down

ALTER TABLE job_run DROP COLUMN succeeded_at;
