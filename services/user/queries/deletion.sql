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

-- A deleted person whom some service has not forgotten since it was told last.
-- name: ErasureOpenSince :one
SELECT d.user_id, d.deleted_at::timestamptz AS deleted_at, p.version
FROM deletion AS d
JOIN profile AS p ON p.id = d.user_id
WHERE d.user_id IN (SELECT e.user_id FROM erasure AS e WHERE e.done_at IS NULL)
  AND d.deleted_at IS NOT NULL AND coalesce(d.told_at, d.deleted_at) <= @before::timestamptz
ORDER BY d.user_id
LIMIT 1
FOR UPDATE OF d SKIP LOCKED;

-- name: ErasureTold :exec
UPDATE deletion SET told_at = @told_at::timestamptz WHERE user_id = @user_id;

-- All lines of people who were deleted since then are open again, and to be told.
-- name: ErasureReopen :exec
UPDATE erasure AS e SET done_at = NULL, requested_at = @now
FROM deletion AS d
WHERE d.user_id = e.user_id AND d.deleted_at >= @since::timestamptz;

-- name: ErasureReopened :execrows
UPDATE deletion SET told_at = 'epoch' WHERE deleted_at >= @since::timestamptz;

-- name: ErasureLate :many
SELECT service, count(*) AS people, min(requested_at)::timestamptz AS oldest FROM erasure
WHERE done_at IS NULL AND requested_at <= @before
GROUP BY service
ORDER BY service;
