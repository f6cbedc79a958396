-- name: SessionCreate :exec
INSERT INTO session (id, account_id, device_name, token_hash, rotated_at, created_at, expires_at, idle_expires_at, address, user_agent)
VALUES (@id, @account_id, @device_name, @token_hash, @created_at, @created_at, @expires_at, @idle_expires_at, @address, @user_agent);

-- The row lock makes two refreshes of one session take turns: the second sees what the first did.
-- name: SessionForRefresh :one
SELECT session.account_id, session.token_hash, session.rotated_at, session.expires_at, session.idle_expires_at,
       session.revoked_at, account.role, account.suspended_at, account.suspended_until
FROM session JOIN account ON account.id = session.account_id
WHERE session.id = @id
FOR NO KEY UPDATE OF session;

-- name: SessionRotate :exec
UPDATE session SET token_hash = @token_hash, rotated_at = @rotated_at, idle_expires_at = @idle_expires_at,
       address = @address, user_agent = @user_agent
WHERE id = @id;

-- No row: the session is unknown or was revoked before, and nothing has changed.
-- name: SessionRevoke :one
UPDATE session SET revoked_at = @revoked_at::timestamptz WHERE id = @id AND revoked_at IS NULL RETURNING account_id;

-- Locked rows are in use: they are left for the next round rather than waited for.
-- name: SessionPrune :execrows
DELETE FROM session WHERE id IN (
    SELECT s.id FROM session s
    WHERE s.expires_at < @expired_before::timestamptz OR s.revoked_at < @revoked_before::timestamptz
    LIMIT @batch FOR UPDATE SKIP LOCKED);

-- Live ones. The position is that of the last row of the page before, NULL for the first page.
-- name: SessionList :many
SELECT id, device_name, created_at, rotated_at, address, user_agent, idle_expires_at
FROM session
WHERE account_id = @account_id AND revoked_at IS NULL AND idle_expires_at > @now
  AND (sqlc.narg(before_used_at)::timestamptz IS NULL
       OR (rotated_at, id) < (sqlc.narg(before_used_at)::timestamptz, sqlc.narg(before_id)::uuid))
ORDER BY rotated_at DESC, id DESC
LIMIT @page_size;

-- name: SessionRename :execrows
UPDATE session SET device_name = @device_name WHERE id = @id AND account_id = @account_id AND revoked_at IS NULL;

-- name: SessionBelongs :one
SELECT EXISTS (SELECT FROM session WHERE id = @id AND account_id = @account_id);

-- All of an account except one, which may be nobody's (the zero id). Those that have idled out too: a refresh that
-- began before may be about to bring one back.
-- name: SessionRevokeAll :many
UPDATE session SET revoked_at = @revoked_at::timestamptz
WHERE account_id = @account_id AND id <> @except_id AND revoked_at IS NULL
RETURNING id, idle_expires_at;

-- The live sessions beyond the number that an account may have, the ones used last being kept. Locked in one order:
-- log-ins that drop several at once take turns.
-- name: SessionRevokeExcess :many
WITH excess AS (
    SELECT s.id FROM session s
    WHERE s.account_id = @account_id AND s.revoked_at IS NULL AND s.idle_expires_at > @revoked_at::timestamptz
    ORDER BY s.rotated_at DESC, s.id DESC OFFSET @keep
), locked AS (
    SELECT s.id FROM session s WHERE s.id IN (SELECT id FROM excess) ORDER BY s.id FOR NO KEY UPDATE
)
UPDATE session SET revoked_at = @revoked_at::timestamptz
WHERE id IN (SELECT id FROM locked) AND revoked_at IS NULL
RETURNING id;
