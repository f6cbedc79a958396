-- name: SessionCreate :exec
INSERT INTO session (id, account_id, device_name, token_hash, rotated_at, created_at, expires_at, idle_expires_at)
VALUES (@id, @account_id, @device_name, @token_hash, @created_at, @created_at, @expires_at, @idle_expires_at);

-- The row lock makes two refreshes of one session take turns: the second sees what the first did.
-- name: SessionForRefresh :one
SELECT session.account_id, session.token_hash, session.rotated_at, session.expires_at, session.idle_expires_at,
       session.revoked_at, account.role
FROM session JOIN account ON account.id = session.account_id
WHERE session.id = @id
FOR NO KEY UPDATE OF session;

-- name: SessionRotate :exec
UPDATE session SET token_hash = @token_hash, rotated_at = @rotated_at, idle_expires_at = @idle_expires_at
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
