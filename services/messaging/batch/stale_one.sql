-- Whether a single send waits for nothing but privacy: one row then, as a verdict of
-- append.sql, or none. It reads without a lock, for whoever asks in vain loses nothing:
-- the answer is stored and the send judged under the lock.
--
-- $1 conversation id, $2 sender id, $3 client message id. $4 permission states checked
-- at or before this are stale.
SELECT 8 AS outcome, 0 AS seq, 0 AS ordinal, c.last_at AS created_at, c.direct_low, c.direct_high, c.permission_version -- 8: stale
FROM conversation AS c
JOIN member AS m ON m.conversation_id = c.id
WHERE c.id = $1::uuid AND NOT c.closed AND c.direct_low IS NOT NULL AND (c.checked_at IS NULL OR c.checked_at <= $4::timestamptz)
    AND m.user_id = $2::uuid AND m.left_seq = 0
    AND NOT EXISTS (SELECT FROM send_key AS k WHERE k.sender_id = $2 AND k.client_message_id = $3::uuid)
