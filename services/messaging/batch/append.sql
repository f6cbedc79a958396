-- Step 2 of a group commit: judge every send and append those that pass.
--
-- It runs after step 1 in one pipeline. A statement takes its snapshot when
-- it starts, so this one sees whatever committed while step 1 waited for the
-- locks. All heads below are therefore current and stay so until the commit.
--
-- $1 conversation ids, $2 sender ids, $3 client message ids, $4 content hashes,
-- $5 bodies: aligned, one element per send, in the order of the queue. No
-- (sender, client message id) occurs twice.
-- $6 the clock. $7 permission states checked at or before this are stale.
-- $8 kind of the entries. $9, $10, $11 the outbox row: id, created_at, envelopes,
-- whose events are aligned with the sends.
WITH send AS (
    SELECT s.*
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[], $5::bytea[]) WITH ORDINALITY
        AS s (conversation_id, sender_id, client_message_id, content_hash, body, ord)
),
-- The outcome of each send; the numbers are those of type outcome in send.go.
-- A double is recognised first: it must answer as it did, also when the
-- conversation was closed since, and it must not take a seq.
judged AS (
    SELECT s.*, c.ctid AS at, c.head_seq, c.head_ordinal, c.last_at, c.direct_low, c.direct_high,
        c.permission_version,
        k.seq AS first_seq, k.ordinal AS first_ordinal, k.created_at AS first_at,
        CASE
            WHEN k.content_hash = s.content_hash THEN 2 -- repeated
            WHEN k.content_hash IS NOT NULL THEN 3      -- id reused
            WHEN m.user_id IS NULL THEN 4               -- no such conversation
            WHEN m.left_seq > 0 THEN 5                  -- not a member any more
            WHEN c.closed THEN 6                        -- closed
            WHEN c.direct_low IS NULL THEN 1            -- appended
            WHEN c.checked_at IS NULL OR c.checked_at <= $7 THEN 8 -- permission stale
            WHEN c.may_send_low AND s.sender_id = c.direct_low THEN 1
            WHEN c.may_send_high AND s.sender_id = c.direct_high THEN 1
            ELSE 7                                      -- not allowed
        END AS outcome
    FROM send AS s
    LEFT JOIN conversation AS c ON c.id = s.conversation_id
    LEFT JOIN member AS m ON m.conversation_id = s.conversation_id AND m.user_id = s.sender_id
    LEFT JOIN send_key AS k ON k.sender_id = s.sender_id AND k.client_message_id = s.client_message_id
),
-- Seq and ordinal of those that pass are dense within the conversation, in queue
-- order; what the others get here is not used. Time never falls behind the head's,
-- whatever the clock of this replica says.
numbered AS (
    SELECT j.*, greatest($6::timestamptz, j.last_at) AS created_at,
        j.head_seq + count(*) FILTER (WHERE j.outcome = 1) OVER log AS seq,
        j.head_ordinal + count(*) FILTER (WHERE j.outcome = 1) OVER log AS ordinal
    FROM judged AS j
    WINDOW log AS (PARTITION BY j.conversation_id ORDER BY j.ord ROWS UNBOUNDED PRECEDING)
),
new_entry AS (
    INSERT INTO entry (conversation_id, seq, created_at, ordinal, kind, sender_id, client_message_id, payload)
    SELECT conversation_id, seq, created_at, ordinal, $8, sender_id, client_message_id, body
    FROM numbered
    WHERE outcome = 1
    ORDER BY ord
),
-- By key: a batch of another replica that has some of the same keys waits at the
-- first of them instead of meeting this one crosswise.
new_key AS (
    INSERT INTO send_key (sender_id, client_message_id, conversation_id, seq, ordinal, created_at, content_hash)
    SELECT sender_id, client_message_id, conversation_id, seq, ordinal, created_at, content_hash
    FROM numbered
    WHERE outcome = 1
    ORDER BY sender_id, client_message_id
),
head AS (
    SELECT conversation_id, at, min(seq) AS from_seq, max(seq) AS seq, max(ordinal) AS ordinal,
        min(last_at) AS was_at, min(created_at) AS created_at
    FROM numbered
    WHERE outcome = 1
    GROUP BY conversation_id, at
),
new_span AS (
    INSERT INTO entry_span (conversation_id, from_seq, from_time)
    SELECT conversation_id, from_seq, created_at
    FROM head
    WHERE date_trunc('month', was_at, 'UTC') <> date_trunc('month', created_at, 'UTC')
),
-- greatest: a transaction that got its id earlier may get the lock later, and a
-- Sync that is paging by xid must not have the row slip back behind its page.
-- A row that is locked stays where it was found, so nobody has to look for it again.
moved AS (
    UPDATE conversation AS c
    SET head_seq = h.seq, head_ordinal = h.ordinal, last_at = h.created_at,
        last_xid = greatest(c.last_xid, pg_current_xact_id())
    FROM head AS h
    WHERE c.ctid = h.at
),
-- Whoever writes has read: the sender's marks move to its last entry. In the order in
-- which the flush of receipts locks the same rows (queries/receipt.sql): a nested loop
-- keeps the order of its outer side. If the two met crosswise all the same, PostgreSQL
-- would end one of them, which tries again.
marked AS (
    UPDATE member AS m
    SET read_seq = greatest(m.read_seq, w.seq),
        read_ordinal = greatest(m.read_ordinal, w.ordinal),
        delivered_seq = greatest(m.delivered_seq, w.seq),
        mark_xid = greatest(m.mark_xid, pg_current_xact_id())
    FROM (
        SELECT conversation_id, sender_id, max(seq) AS seq, max(ordinal) AS ordinal
        FROM numbered
        WHERE outcome = 1
        GROUP BY conversation_id, sender_id
        ORDER BY conversation_id, sender_id
    ) AS w
    WHERE m.conversation_id = w.conversation_id AND m.user_id = w.sender_id
),
-- One row for all; key_versions completes the envelopes, NULL for a send that
-- was not appended. Nothing appended: no row.
new_outbox AS (
    INSERT INTO outbox (id, created_at, envelopes, key_versions)
    SELECT $9, $10, $11, array_agg(CASE outcome WHEN 1 THEN seq END ORDER BY ord)
    FROM numbered
    HAVING count(*) FILTER (WHERE outcome = 1) > 0
)
SELECT outcome,
    CASE outcome WHEN 1 THEN seq ELSE coalesce(first_seq, 0) END AS seq,
    CASE outcome WHEN 1 THEN ordinal ELSE coalesce(first_ordinal, 0) END AS ordinal,
    CASE outcome WHEN 1 THEN created_at ELSE coalesce(first_at, $6) END AS created_at,
    direct_low, direct_high, coalesce(permission_version, 0) AS permission_version
FROM numbered
ORDER BY ord
