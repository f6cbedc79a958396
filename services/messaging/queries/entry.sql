-- A run of the log, the oldest first. The spans turn the seqs into times, by which
-- only the partitions that hold the run are read: from the time at which the span
-- of the first began, to the end of the month of the span of the last.
-- name: EntryRange :many
SELECT e.seq, e.ordinal, e.kind, e.sender_id, e.created_at, e.client_message_id, e.payload
FROM entry AS e
WHERE e.conversation_id = @conversation_id
  AND e.seq >= @from_seq AND e.seq <= @to_seq
  AND e.created_at >= (
      SELECT max(s.from_time) FROM entry_span AS s
      WHERE s.conversation_id = @conversation_id AND s.from_seq <= @from_seq
  )
  AND e.created_at < (
      SELECT (date_trunc('month', max(s.from_time) AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC'
      FROM entry_span AS s
      WHERE s.conversation_id = @conversation_id AND s.from_seq <= @to_seq
  )
ORDER BY e.seq;

-- Entries whose time is known, by which only the partition that holds it is read for
-- each. One whose partition is gone gives no row.
-- name: EntryHead :many
SELECT k.conversation_id::uuid AS conversation_id, k.seq::bigint AS seq, k.at::timestamptz AS created_at,
    e.ordinal, e.kind, e.sender_id, e.client_message_id, e.payload
FROM (
    SELECT unnest(@conversation_ids::uuid[]) AS conversation_id, unnest(@seqs::bigint[]) AS seq,
        unnest(@ats::timestamptz[]) AS at
) AS k
CROSS JOIN LATERAL (
    SELECT l.ordinal, l.kind, l.sender_id, l.client_message_id, l.payload
    FROM entry AS l
    WHERE l.conversation_id = k.conversation_id AND l.seq = k.seq AND l.created_at = k.at
    LIMIT 1 -- at most one, said so that the planner looks it up for each
) AS e;

-- Single entries with the people of their conversations, to push them again.
-- Young ones only: the time bound prunes.
-- name: EntryRecovered :many
SELECT e.conversation_id, e.seq, e.ordinal, e.kind, e.sender_id, e.created_at, e.client_message_id, e.payload,
    c.direct_low, c.direct_high
FROM (SELECT unnest(@conversation_ids::uuid[]) AS conversation_id, unnest(@seqs::bigint[]) AS seq) AS k
JOIN conversation AS c ON c.id = k.conversation_id
JOIN entry AS e ON e.conversation_id = k.conversation_id AND e.seq = k.seq AND e.created_at >= @since
ORDER BY e.conversation_id, e.seq;

-- name: SendKeyPrune :execrows
DELETE FROM send_key
WHERE (sender_id, client_message_id) IN (
    SELECT k.sender_id, k.client_message_id FROM send_key AS k
    WHERE k.created_at < @before
    ORDER BY k.created_at
    LIMIT @batch_size
    FOR UPDATE SKIP LOCKED
);
