-- name: AuditAppend :exec
INSERT INTO audit (id, at, account_id, action, refused, actor, actor_id, session_id, address, user_agent, details)
VALUES (@id, @at, @account_id, @action, @refused, @actor, @actor_id, @session_id, @address, @user_agent, @details);

-- The position is that of the last row of the page before, NULL for the first page.
-- name: AuditOfAccount :many
SELECT id, at, account_id, action, refused, actor, actor_id, session_id, address, user_agent, details
FROM audit
WHERE account_id = @account_id::uuid
  AND (sqlc.narg(before_at)::timestamptz IS NULL
       OR (at, id) < (sqlc.narg(before_at)::timestamptz, sqlc.narg(before_id)::uuid))
ORDER BY at DESC, id DESC
LIMIT @page_size;

-- name: AuditOfAll :many
SELECT id, at, account_id, action, refused, actor, actor_id, session_id, address, user_agent, details
FROM audit
WHERE sqlc.narg(before_at)::timestamptz IS NULL
   OR (at, id) < (sqlc.narg(before_at)::timestamptz, sqlc.narg(before_id)::uuid)
ORDER BY at DESC, id DESC
LIMIT @page_size;

-- name: AuditPrune :execrows
DELETE FROM audit WHERE id IN (
    SELECT a.id FROM audit a WHERE a.at < @before ORDER BY a.at LIMIT @batch FOR UPDATE SKIP LOCKED);
