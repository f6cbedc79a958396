-- No row: the session has ended.
-- name: SessionConfirm :execrows
UPDATE session SET confirmed_at = @confirmed_at::timestamptz
WHERE id = @id AND account_id = @account_id AND revoked_at IS NULL AND idle_expires_at > @confirmed_at::timestamptz;

-- name: SessionConfirmed :one
SELECT coalesce(confirmed_at, created_at)::timestamptz AS confirmed_at FROM session
WHERE id = @id AND account_id = @account_id AND revoked_at IS NULL AND idle_expires_at > @now;
