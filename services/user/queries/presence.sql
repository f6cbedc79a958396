-- name: PresenceByID :many
SELECT user_id, online, devices, last_seen_at, invisible, shown_seen_at, version, shown_version
FROM presence WHERE user_id = ANY(@ids::uuid[]);

-- In one order for everybody, so that none waits for another in a circle.
-- name: PresenceLock :many
SELECT user_id, online, devices, last_seen_at, invisible, shown_seen_at, version, shown_version
FROM presence WHERE user_id = ANY(@ids::uuid[])
ORDER BY user_id
FOR UPDATE;

-- The row of somebody who is heard of first. Who was deleted gets none.
-- name: PresenceMake :exec
INSERT INTO presence (user_id, online, devices, last_seen_at, shown_seen_at, version, shown_version)
SELECT u.user_id, false, '', 'epoch', 'epoch', 0, 0
FROM (SELECT unnest(@ids::uuid[]) AS user_id ORDER BY 1) AS u
WHERE NOT EXISTS (SELECT FROM profile AS f WHERE f.id = u.user_id AND f.deleted_at IS NOT NULL)
ON CONFLICT (user_id) DO NOTHING;

-- Of rows that are locked. invisible is PresenceHide's.
-- name: PresenceStore :exec
UPDATE presence AS p
SET online = u.online, devices = u.devices, last_seen_at = u.last_seen_at, shown_seen_at = u.shown_seen_at,
    version = u.version, shown_version = u.shown_version
FROM (
    SELECT unnest(@user_ids::uuid[]) AS user_id, unnest(@onlines::boolean[]) AS online,
        unnest(@device_counts::bytea[]) AS devices, unnest(@last_seen_ats::timestamptz[]) AS last_seen_at,
        unnest(@shown_seen_ats::timestamptz[]) AS shown_seen_at, unnest(@versions::bigint[]) AS version,
        unnest(@shown_versions::bigint[]) AS shown_version
) AS u
WHERE p.user_id = u.user_id;

-- name: PresenceHide :exec
UPDATE presence SET invisible = @invisible, shown_seen_at = @shown_seen_at, version = @version, shown_version = @shown_version
WHERE user_id = @user_id;

-- name: PresenceOnlinePage :many
SELECT user_id FROM presence WHERE online AND user_id > @after ORDER BY user_id LIMIT @page_size;

-- name: PresenceForget :exec
DELETE FROM presence WHERE user_id = @user_id;

-- Rows that were made while their person was being deleted.
-- name: PresenceForgetDeleted :exec
DELETE FROM presence AS p USING deletion AS d WHERE d.user_id = p.user_id AND d.deleted_at > @since::timestamptz;
