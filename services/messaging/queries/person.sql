-- name: PersonUpsert :exec
INSERT INTO person (id, version)
VALUES (@id, @version)
ON CONFLICT (id) DO UPDATE SET version = excluded.version
WHERE person.version < excluded.version;

-- Who starts a conversation with whom. The locks make it wait for a person who is
-- just being forgotten, and the forgetting wait for the conversation: it then sees
-- it.
-- name: PersonsLock :many
SELECT id, forgotten FROM person WHERE id = ANY(@ids::uuid[]) ORDER BY id FOR SHARE;

-- name: PersonForget :exec
INSERT INTO person (id, version, forgotten)
VALUES (@id, 0, true)
ON CONFLICT (id) DO UPDATE SET forgotten = true;

-- Every conversation of a person, locked in the order in which sends lock them.
-- name: PersonConversationsLock :many
SELECT c.id, c.kind, c.direct_low, c.direct_high
FROM conversation AS c
WHERE c.id IN (SELECT m.conversation_id FROM member AS m WHERE m.user_id = @user_id)
ORDER BY c.id
FOR NO KEY UPDATE OF c;

-- name: ConversationClose :exec
UPDATE conversation SET closed = true, last_xid = greatest(last_xid, pg_current_xact_id())
WHERE id = ANY(@ids::uuid[]);

-- name: MemberForget :exec
UPDATE member
SET read_seq = 0, read_ordinal = 0, delivered_seq = 0, mark_xid = greatest(mark_xid, pg_current_xact_id())
WHERE user_id = @user_id;

-- name: SendKeyForget :exec
DELETE FROM send_key WHERE sender_id = @sender_id;

-- A page of somebody's conversations, with what is stored of the person in each.
-- name: PersonConversations :many
SELECT c.id, c.kind, c.created_at, c.last_at, c.closed, c.direct_low, c.direct_high,
    m.join_seq, m.left_seq, m.read_seq, m.delivered_seq,
    (CASE WHEN m.left_seq > 0 THEN m.left_seq ELSE c.head_seq END)::bigint AS head_seq
FROM member AS m
JOIN conversation AS c ON c.id = m.conversation_id
WHERE m.user_id = @user_id AND m.conversation_id > @after_id
ORDER BY m.conversation_id
LIMIT @page_size;
