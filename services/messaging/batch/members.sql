-- Step 2 of a group commit: lock the senders' own member rows, in the same order
-- as the flush of receipts does, because the append moves the senders' watermarks.
-- $1 conversation ids and $2 sender ids, aligned.
SELECT count(*)
FROM (
    SELECT 1
    FROM member AS m
    JOIN (
        SELECT DISTINCT s.conversation_id, s.user_id
        FROM unnest($1::uuid[], $2::uuid[]) AS s (conversation_id, user_id)
    ) AS sender USING (conversation_id, user_id)
    ORDER BY m.conversation_id, m.user_id
    FOR NO KEY UPDATE OF m
) AS locked
