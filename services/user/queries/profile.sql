-- Insert if absent is "keep the highest version" here: account.registered is the first event of its
-- key, and what was asked of auth instead is at least as new. No row returned: it was there.
-- name: ProfileCreate :execrows
INSERT INTO profile (id, username, display_name, search, version, account_version, created_at)
VALUES (@id, @username, @display_name, @search, @version, @account_version, @created_at)
ON CONFLICT (id) DO NOTHING;

-- name: ProfilesByID :many
SELECT id, username, display_name, bio, version, created_at, (deleted_at IS NOT NULL)::boolean AS deleted
FROM profile WHERE id = ANY(@ids::uuid[]);

-- name: ProfilesDeleted :many
SELECT id FROM profile WHERE id = ANY(@ids::uuid[]) AND deleted_at IS NOT NULL;

-- name: ProfileOwn :one
SELECT id, username, display_name, bio, locale, discoverable, version, account_version, created_at,
    (deleted_at IS NOT NULL)::boolean AS deleted
FROM profile WHERE id = @id;

-- The lock makes changes of one profile take turns.
-- name: ProfileForUpdate :one
SELECT id, username, display_name, bio, locale, discoverable, version, account_version, created_at,
    (deleted_at IS NOT NULL)::boolean AS deleted
FROM profile WHERE id = @id
FOR NO KEY UPDATE;

-- name: ProfileUpdate :exec
UPDATE profile
SET username = @username, display_name = @display_name, bio = @bio, locale = @locale, discoverable = @discoverable,
    search = @search, version = @version, account_version = @account_version
WHERE id = @id;

-- From now on the person looks deleted; what can be read goes with ProfileForget.
-- name: ProfileDelete :one
UPDATE profile SET deleted_at = @deleted_at::timestamptz, version = version + 1 WHERE id = @id RETURNING version;

-- name: ProfileForget :exec
UPDATE profile
SET username = '', display_name = '', bio = '', locale = '', discoverable = false, search = '',
    deleted_at = coalesce(deleted_at, @deleted_at::timestamptz)
WHERE id = @id;

-- Names that the release before has written, or written without their search form.
-- name: ProfileUnindexed :many
SELECT id, username, display_name FROM profile
WHERE search = '' AND deleted_at IS NULL
ORDER BY id
LIMIT @batch;

-- The names in the condition: a row that was changed meanwhile has its search form.
-- name: ProfileIndex :exec
UPDATE profile SET search = @search
WHERE id = @id AND username = @username AND display_name = @display_name AND deleted_at IS NULL;

-- name: StandingUpsert :exec
INSERT INTO standing (user_id, suspended, version) VALUES (@user_id, @suspended, @version)
ON CONFLICT (user_id) DO UPDATE SET suspended = excluded.suspended, version = excluded.version
WHERE standing.version < excluded.version;

-- name: StandingForget :exec
DELETE FROM standing WHERE user_id = @user_id;
