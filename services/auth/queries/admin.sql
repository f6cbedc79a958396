-- name: AccountForAdmin :one
SELECT id, username, email, email_verified_at, role, created_at, suspended_at, suspended_until, suspension_note,
       EXISTS (SELECT FROM second_factor f WHERE f.account_id = account.id AND f.confirmed_at IS NOT NULL) AS second_factor
FROM account WHERE id = sqlc.narg(id)::uuid OR username_key = sqlc.narg(username_key)::text;

-- In one order, so that two admins who act on each other take turns; the second sees what the first did.
-- name: AdminsLocked :many
SELECT id, suspended_at, suspended_until FROM account WHERE role = 'admin' ORDER BY id FOR NO KEY UPDATE;

-- name: AdminsLeft :one
SELECT count(*) FROM account WHERE role = 'admin';

-- name: AccountIsAdmin :one
SELECT EXISTS (
    SELECT FROM account
    WHERE id = @id AND role = 'admin'
      AND (suspended_at IS NULL OR suspended_until <= @now::timestamptz));

-- name: AccountSetRole :exec
UPDATE account SET role = @role WHERE id = @id;

-- name: AccountSuspend :one
UPDATE account SET suspended_at = @suspended_at::timestamptz, suspended_until = sqlc.narg(suspended_until)::timestamptz,
       suspension_note = @suspension_note, version = version + 1
WHERE id = @id RETURNING version;

-- name: AccountUnsuspend :one
UPDATE account SET suspended_at = NULL, suspended_until = NULL, suspension_note = '', version = version + 1
WHERE id = @id AND suspended_at IS NOT NULL RETURNING version;

-- Suspensions that are over. Locked rows are an admin's at the moment and wait for the next round.
-- name: AccountsUnsuspendDue :many
UPDATE account SET suspended_at = NULL, suspended_until = NULL, suspension_note = '', version = version + 1
WHERE id IN (
    SELECT a.id FROM account a WHERE a.suspended_until <= @now::timestamptz
    ORDER BY a.suspended_until LIMIT @batch FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id, version;
