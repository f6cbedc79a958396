-- name: ConversationIDByPair :one
SELECT id FROM conversation WHERE direct_low = @low::uuid AND direct_high = @high::uuid;

-- A pair that exists already, or is just being made by somebody else, gives no row:
-- the loser waits here for the winner's commit.
-- name: ConversationInsertDirect :execrows
INSERT INTO conversation (id, kind, direct_low, direct_high, head_seq, head_ordinal, last_at, last_xid, created_at)
VALUES (@id, @kind, @low::uuid, @high::uuid, 1, 0, @at, pg_current_xact_id(), @at)
ON CONFLICT ON CONSTRAINT conversation_pair DO NOTHING;

-- name: MemberInsert :exec
INSERT INTO member (conversation_id, user_id, join_seq, read_seq, delivered_seq, mark_xid)
VALUES (@conversation_id, @user_id, @join_seq, @seen_seq, @seen_seq, pg_current_xact_id());

-- The first entry of a log, and with it the first span.
-- name: EntryInsertFirst :exec
WITH span AS (
    INSERT INTO entry_span (conversation_id, from_seq, from_time) VALUES (@conversation_id, 1, @at)
)
INSERT INTO entry (conversation_id, seq, created_at, ordinal, kind, sender_id, payload)
VALUES (@conversation_id, 1, @at, 0, @kind, @sender_id, @payload);

-- A page of ids; what they look like is asked of ConversationSeen.
-- name: ConversationPage :many
SELECT c.id, c.last_at
FROM member AS m
JOIN conversation AS c ON c.id = m.conversation_id
WHERE m.user_id = @user_id AND m.left_seq = 0
  AND (c.last_at, c.id) < (@before_at::timestamptz, @before_id::uuid)
ORDER BY c.last_at DESC, c.id DESC
LIMIT @page_size;

-- Conversations as their members see them: pairs of viewer and conversation, in
-- any order. A viewer that never was a member gets no row; one that has left sees
-- the log up to where it left, and its last entry is found here, by its time, so that
-- only the partition that holds it is read. The last entry of the others is that at
-- the head, which many ask for: EntryHead, behind a cache.
-- name: ConversationSeen :many
SELECT c.id, c.kind, c.created_at, c.closed, m.user_id AS viewer_id,
    m.join_seq, m.left_seq, m.read_seq, m.read_ordinal, m.delivered_seq,
    o.user_id AS other_id, o.join_seq AS other_join_seq, o.left_seq AS other_left_seq,
    o.read_seq AS other_read_seq, o.delivered_seq AS other_delivered_seq,
    (CASE WHEN m.left_seq > 0 THEN m.left_seq ELSE c.head_seq END)::bigint AS head_seq,
    coalesce(e.ordinal, c.head_ordinal) AS head_ordinal,
    coalesce(e.created_at, c.last_at) AS last_at,
    coalesce(e.kind, 0)::smallint AS entry_kind,
    coalesce(e.sender_id, '00000000-0000-0000-0000-000000000000')::uuid AS entry_sender_id,
    e.client_message_id AS entry_client_message_id, coalesce(e.payload, '')::bytea AS entry_payload
FROM (SELECT unnest(@viewer_ids::uuid[]) AS user_id, unnest(@conversation_ids::uuid[]) AS conversation_id) AS k
JOIN member AS m ON m.conversation_id = k.conversation_id AND m.user_id = k.user_id
JOIN conversation AS c ON c.id = m.conversation_id
LEFT JOIN member AS o ON o.conversation_id = c.id
    AND o.user_id = CASE m.user_id WHEN c.direct_low THEN c.direct_high ELSE c.direct_low END
LEFT JOIN LATERAL (
    SELECT l.ordinal, l.created_at, l.kind, l.sender_id, l.client_message_id, l.payload
    FROM entry AS l
    WHERE m.left_seq > 0
      AND l.conversation_id = c.id
      AND l.seq = m.left_seq
      AND l.created_at <= c.last_at
      AND l.created_at >= (
              SELECT max(s.from_time) FROM entry_span AS s
              WHERE s.conversation_id = c.id AND s.from_seq <= m.left_seq
          )
    LIMIT 1 -- at most one, said so that the planner looks it up per conversation
) AS e ON true;

-- The part of a log that a member may see; no row for one that never was one.
-- name: MemberWindow :one
SELECT m.join_seq, m.left_seq,
    (CASE WHEN m.left_seq > 0 THEN m.left_seq ELSE c.head_seq END)::bigint AS head_seq
FROM member AS m
JOIN conversation AS c ON c.id = m.conversation_id
WHERE m.conversation_id = @conversation_id AND m.user_id = @user_id;
