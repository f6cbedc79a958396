-- name: ExportRunCount :one
SELECT count(*) AS runs, coalesce(min(started_at), @since)::timestamptz AS oldest FROM export_run
WHERE user_id = @user_id AND started_at > @since::timestamptz;

-- name: ExportRunCreate :exec
INSERT INTO export_run (id, user_id, started_at) VALUES (@id, @user_id, @started_at);

-- name: ExportRunForget :exec
DELETE FROM export_run WHERE user_id = @user_id;

-- name: ExportRunPrune :exec
DELETE FROM export_run WHERE started_at < @before;

-- name: ExportRunByUser :many
SELECT started_at FROM export_run WHERE user_id = @user_id ORDER BY started_at;

-- name: ExportRunCancel :exec
DELETE FROM export_run WHERE id = @id;

-- name: StandingByUser :one
SELECT suspended FROM standing WHERE user_id = @user_id;
