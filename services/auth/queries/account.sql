-- name: AccountCreate :exec
INSERT INTO account (id, username, username_key, email, email_key, display_name, role, password_hash, version, created_at)
VALUES (@id, @username, @username_key, @email, @email_key, @display_name, @role, @password_hash, @version, @created_at);

-- A user name never holds an "@" and an address always does: at most one row.
-- name: AccountCredentials :one
SELECT id, role, password_hash FROM account WHERE username_key = @login_key OR email_key = @login_key;

-- The old hash in the condition: a password changed meanwhile is not overwritten.
-- name: AccountRehash :exec
UPDATE account SET password_hash = @new_hash WHERE id = @id AND password_hash = @old_hash;

-- name: AccountsByID :many
SELECT id, username, display_name, version, created_at FROM account WHERE id = ANY(@ids::uuid[]);
