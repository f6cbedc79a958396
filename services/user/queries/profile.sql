-- Insert if absent is "keep the highest version" here: account.registered is the first event of its
-- key, and what was asked of auth instead is at least as new. No row returned: it was there.
-- name: ProfileCreate :execrows
INSERT INTO profile (id, username, display_name, version, account_version, created_at)
VALUES (@id, @username, @display_name, @version, @account_version, @created_at)
ON CONFLICT (id) DO NOTHING;

-- name: ProfilesByID :many
SELECT id, username, display_name, version, created_at FROM profile WHERE id = ANY(@ids::uuid[]);
