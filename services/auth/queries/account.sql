-- name: AccountCreate :exec
INSERT INTO account (id, username, username_key, email, email_key, display_name, role, password_hash, version, created_at)
VALUES (@id, @username, @username_key, @email, @email_key, @display_name, @role, @password_hash, @version, @created_at);

-- A user name never holds an "@" and an address always does: at most one row.
-- name: AccountCredentials :one
SELECT id, password_hash, password_changed_at FROM account WHERE username_key = @login_key OR email_key = @login_key;

-- Shared with other log-ins, against whoever changes the account: a session that begins is either seen by a
-- change of password, role or suspension, or sees it.
-- name: AccountForLogIn :one
SELECT username, email, role, password_changed_at, suspended_at, suspended_until FROM account WHERE id = @id FOR SHARE;

-- name: AccountOwn :one
SELECT username, email, email_verified_at, role, password_hash, created_at, password_changed_at,
       EXISTS (SELECT FROM second_factor f WHERE f.account_id = account.id AND f.confirmed_at IS NOT NULL) AS second_factor
FROM account WHERE id = @id;

-- name: AccountByLogin :one
SELECT id, username, email FROM account WHERE username_key = @login_key OR email_key = @login_key;

-- The lock comes before those of the account's sessions, always.
-- name: AccountForChange :one
SELECT username, email, email_verified_at, role, password_changed_at, suspended_at, suspended_until, suspension_note
FROM account WHERE id = @id FOR NO KEY UPDATE;

-- name: AccountSetPassword :exec
UPDATE account SET password_hash = @password_hash, password_changed_at = @changed_at::timestamptz WHERE id = @id;

-- name: AccountSetEmail :exec
UPDATE account SET email = @email, email_key = @email_key, email_verified_at = @verified_at::timestamptz WHERE id = @id;

-- The address in the condition: one that was changed meanwhile is not what the code went to.
-- name: AccountVerifyEmail :execrows
UPDATE account SET email_verified_at = @verified_at::timestamptz
WHERE id = @id AND email = @email AND email_verified_at IS NULL;

-- The old hash in the condition: a password changed meanwhile is not overwritten.
-- name: AccountRehash :exec
UPDATE account SET password_hash = @new_hash WHERE id = @id AND password_hash = @old_hash;

-- name: AccountsByID :many
SELECT id, username, display_name, version, created_at FROM account WHERE id = ANY(@ids::uuid[]);
