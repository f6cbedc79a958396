-- The commit of a single send: append it, if nothing is to be said against it. No row:
-- something is, or it begins a month; append.sql then judges. Nothing is written then,
-- so the end of the transaction waits for no disk.
--
-- While there is little to do every batch is one send, and most of what append.sql
-- costs is to set up its plan, which is made for many. This is it without whatever
-- a plain send does not need, and without a statement before it that takes the lock.
-- What passes here must pass there, and leave the same rows (append_test.go).
--
-- So the snapshot may be older than the lock. If another transaction had the lock in
-- between, the update finds the row as that one left it, and looks at its conditions
-- once more with this row and otherwise with what the snapshot saw. What it could miss,
-- keys and memberships, changes only with the head or when the conversation is closed:
-- the head has to be that of the snapshot.
--
-- $1 conversation id, $2 sender id, $3 client message id, $4 content hash, $5 body,
-- $6 the clock. $7 permission states checked at or before this are stale.
-- $8 kind of the entry. $9, $10, $11 the outbox row: id, created_at, envelopes.
WITH moved AS (
    UPDATE conversation AS c
    SET head_seq = c.head_seq + 1, head_ordinal = c.head_ordinal + 1, last_at = greatest($6::timestamptz, c.last_at),
        last_xid = greatest(c.last_xid, pg_current_xact_id())
    FROM member AS m
    WHERE c.id = $1::uuid AND NOT c.closed AND c.head_seq = (SELECT o.head_seq FROM conversation AS o WHERE o.id = $1)
        AND m.conversation_id = $1 AND m.user_id = $2::uuid AND m.left_seq = 0
        AND (c.direct_low IS NULL OR (c.checked_at > $7::timestamptz
            AND ((c.may_send_low AND c.direct_low = $2) OR (c.may_send_high AND c.direct_high = $2))))
        AND date_trunc('month', c.last_at, 'UTC') = date_trunc('month', greatest($6, c.last_at), 'UTC')
        AND NOT EXISTS (SELECT FROM send_key AS k WHERE k.sender_id = $2 AND k.client_message_id = $3::uuid)
    RETURNING c.head_seq AS seq, c.head_ordinal AS ordinal, c.last_at AS created_at,
        c.direct_low, c.direct_high, c.permission_version
),
new_entry AS (
    INSERT INTO entry (conversation_id, seq, created_at, ordinal, kind, sender_id, client_message_id, payload)
    SELECT $1, seq, created_at, ordinal, $8::smallint, $2, $3, $5::bytea
    FROM moved
),
new_key AS (
    INSERT INTO send_key (sender_id, client_message_id, conversation_id, seq, ordinal, created_at, content_hash)
    SELECT $2, $3, $1, seq, ordinal, created_at, $4::bytea
    FROM moved
),
marked AS (
    UPDATE member AS m
    SET read_seq = greatest(m.read_seq, h.seq),
        read_ordinal = greatest(m.read_ordinal, h.ordinal),
        delivered_seq = greatest(m.delivered_seq, h.seq),
        mark_xid = greatest(m.mark_xid, pg_current_xact_id())
    FROM moved AS h
    WHERE m.conversation_id = $1 AND m.user_id = $2
),
new_outbox AS (
    INSERT INTO outbox (id, created_at, envelopes, key_versions)
    SELECT $9::uuid, $10::timestamptz, $11::bytea, ARRAY[seq]
    FROM moved
)
SELECT 1 AS outcome, seq, ordinal, created_at, direct_low, direct_high, permission_version -- 1: appended
FROM moved
