-- Has PostgreSQL end this transaction when it has stood idle for so many milliseconds.
-- name: FlushIdle :exec
SELECT set_config('idle_in_transaction_session_timeout', @milliseconds::text, true);

-- Locks member rows in the order in which sends lock them.
-- name: MemberLock :exec
SELECT 1
FROM (
    SELECT unnest(@conversation_ids::uuid[]) AS conversation_id, unnest(@user_ids::uuid[]) AS user_id
) AS k
JOIN member AS m ON m.conversation_id = k.conversation_id AND m.user_id = k.user_id
ORDER BY m.conversation_id, m.user_id
FOR NO KEY UPDATE OF m;

-- Raises watermarks and returns those that rose. A mark beyond what the member may
-- see counts as the last entry that it may see; reading implies delivery. The
-- ordinal at the head is known, that of an older entry is looked up.
-- name: MemberMark :many
WITH mark AS (
    SELECT k.conversation_id, k.user_id, c.direct_low, c.direct_high, c.head_seq, c.head_ordinal,
        greatest(m.read_seq, least(k.read_seq, v.seq)) AS read_seq,
        greatest(m.delivered_seq, least(greatest(k.read_seq, k.delivered_seq), v.seq)) AS delivered_seq,
        m.read_seq AS old_read_seq, m.read_ordinal AS old_read_ordinal, m.delivered_seq AS old_delivered_seq
    FROM (
        SELECT unnest(@conversation_ids::uuid[]) AS conversation_id, unnest(@user_ids::uuid[]) AS user_id,
            unnest(@read_seqs::bigint[]) AS read_seq, unnest(@delivered_seqs::bigint[]) AS delivered_seq
    ) AS k
    JOIN member AS m ON m.conversation_id = k.conversation_id AND m.user_id = k.user_id
    JOIN conversation AS c ON c.id = k.conversation_id
    CROSS JOIN LATERAL (SELECT CASE WHEN m.left_seq > 0 THEN m.left_seq ELSE c.head_seq END AS seq) AS v
), risen AS (
    SELECT r.*,
        CASE
            WHEN r.read_seq = r.old_read_seq THEN r.old_read_ordinal
            WHEN r.read_seq = r.head_seq THEN r.head_ordinal
            ELSE coalesce((
                SELECT e.ordinal FROM entry AS e
                WHERE e.conversation_id = r.conversation_id AND e.seq = r.read_seq
                  AND e.created_at >= (
                      SELECT max(s.from_time) FROM entry_span AS s
                      WHERE s.conversation_id = r.conversation_id AND s.from_seq <= r.read_seq
                  )
                  AND e.created_at < (
                      SELECT (date_trunc('month', max(s.from_time) AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC'
                      FROM entry_span AS s
                      WHERE s.conversation_id = r.conversation_id AND s.from_seq <= r.read_seq
                  )
            ), r.old_read_ordinal)
        END AS read_ordinal
    FROM mark AS r
    WHERE r.read_seq > r.old_read_seq OR r.delivered_seq > r.old_delivered_seq
)
UPDATE member AS m
SET read_seq = r.read_seq, read_ordinal = r.read_ordinal, delivered_seq = r.delivered_seq,
    mark_xid = greatest(m.mark_xid, pg_current_xact_id())
FROM risen AS r
WHERE m.conversation_id = r.conversation_id AND m.user_id = r.user_id
RETURNING m.conversation_id, m.user_id, m.read_seq, m.delivered_seq,
    (r.read_seq > r.old_read_seq)::boolean AS read_rose,
    (r.delivered_seq > r.old_delivered_seq)::boolean AS delivered_rose,
    r.direct_low, r.direct_high;
