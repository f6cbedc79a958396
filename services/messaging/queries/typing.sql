-- Who is in a conversation, up to a number of people, and whether the two of a
-- direct one may write to each other as far as is known (NULL checked_at: not
-- known, and then nothing is said against it).
-- name: TypingMembers :many
SELECT m.user_id, c.closed, c.direct_low, c.may_send_low, c.may_send_high,
    (c.checked_at IS NOT NULL)::boolean AS checked
FROM member AS m
JOIN conversation AS c ON c.id = m.conversation_id
WHERE m.conversation_id = @conversation_id AND m.left_seq = 0
LIMIT @most;

-- Somebody whose account has not been heard of yet is there all the same.
-- name: InvisibleUpsert :exec
INSERT INTO person (id, version, invisible, invisible_version)
VALUES (@id, 0, @invisible, @version)
ON CONFLICT (id) DO UPDATE SET invisible = excluded.invisible, invisible_version = excluded.invisible_version
WHERE person.invisible_version < excluded.invisible_version AND NOT person.forgotten;

-- name: InvisibleNow :one
SELECT EXISTS (SELECT FROM person WHERE id = @id AND invisible)::boolean AS invisible;

-- name: InvisibleForget :exec
UPDATE person SET invisible = false, invisible_version = 0 WHERE id = @id;
