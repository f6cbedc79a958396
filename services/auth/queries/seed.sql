-- Many accounts at once, for load tests: all share one form of password that nothing matches.
-- Functions that return sets run in step in a SELECT list, so the arrays are read row by row.

-- name: AccountsSeed :exec
INSERT INTO account (id, username, username_key, email, email_key, display_name, role, password_hash, version, created_at)
SELECT unnest(@ids::uuid[]), unnest(@usernames::text[]), unnest(@usernames::text[]), unnest(@emails::text[]), unnest(@emails::text[]),
       unnest(@usernames::text[]), 'user', @password_hash, @version, @created_at;

-- name: SessionsSeed :exec
INSERT INTO session (id, account_id, device_name, token_hash, rotated_at, created_at, expires_at, idle_expires_at)
SELECT unnest(@ids::uuid[]), unnest(@account_ids::uuid[]), @device_name, unnest(@token_hashes::bytea[]),
       @created_at, @created_at, @expires_at, @expires_at;
