-- No row: there is a request already.
-- name: DeletionCreate :execrows
INSERT INTO deletion (user_id, request_id, requested_at, due_at)
VALUES (@user_id, @request_id, @requested_at, @due_at)
ON CONFLICT (user_id) DO NOTHING;

-- name: DeletionByUser :one
SELECT request_id, requested_at, due_at, deleted_at FROM deletion WHERE user_id = @user_id;

-- name: DeletionCancel :one
DELETE FROM deletion WHERE user_id = @user_id AND deleted_at IS NULL RETURNING request_id;

-- One that is due. Locked ones are being cancelled, or carried out by a leader that
-- thinks it still is one: they are left alone.
-- name: DeletionDue :one
SELECT user_id FROM deletion
WHERE deleted_at IS NULL AND due_at <= @now
ORDER BY due_at
LIMIT 1
FOR UPDATE SKIP LOCKED;

-- name: DeletionDone :exec
UPDATE deletion SET deleted_at = @deleted_at::timestamptz WHERE user_id = @user_id;

-- name: ErasureOpen :exec
INSERT INTO erasure (user_id, service, requested_at)
SELECT @user_id, unnest(@services::text[]), @requested_at
ON CONFLICT (user_id, service) DO NOTHING;

-- A service that was not asked, because the deployment had not named it, is noted
-- as well.
-- name: ErasureDone :exec
INSERT INTO erasure (user_id, service, requested_at, done_at)
VALUES (@user_id, @service, @at, @at::timestamptz)
ON CONFLICT (user_id, service) DO UPDATE SET done_at = coalesce(erasure.done_at, excluded.done_at);

-- name: ErasureByUser :many
SELECT service, requested_at, done_at FROM erasure WHERE user_id = @user_id ORDER BY service;

-- name: ErasureLate :many
SELECT service, count(*) AS people, min(requested_at)::timestamptz AS oldest FROM erasure
WHERE done_at IS NULL AND requested_at <= @before
GROUP BY service
ORDER BY service;
