-- name: AccountForUsername :one
SELECT username, username_key, display_name, created_at, version, username_changed_at
FROM account WHERE id = @id FOR NO KEY UPDATE;

-- name: AccountSetUsername :one
UPDATE account
SET username = @username, username_key = @username_key, username_changed_at = @changed_at::timestamptz, version = version + 1
WHERE id = @id
RETURNING version;

-- Asked after the name was taken, which waits for whoever is just giving it away.
-- name: UsernameHeldByOther :one
SELECT EXISTS (SELECT 1 FROM username_hold WHERE username_key = @username_key AND account_id <> @account_id);

-- name: UsernameHold :exec
INSERT INTO username_hold (username_key, account_id, username, held_until)
VALUES (@username_key, @account_id, @username, @held_until)
ON CONFLICT (username_key) DO UPDATE SET username = excluded.username, held_until = excluded.held_until;

-- name: UsernameUnhold :exec
DELETE FROM username_hold WHERE username_key = @username_key AND account_id = @account_id;

-- name: UsernameHoldsOf :many
SELECT username, held_until FROM username_hold WHERE account_id = @account_id ORDER BY held_until, username_key;

-- name: UsernameHoldPrune :execrows
DELETE FROM username_hold WHERE username_key IN (
    SELECT h.username_key FROM username_hold AS h WHERE h.held_until <= @now LIMIT @batch FOR UPDATE SKIP LOCKED);
