-- Step 1 of a group commit: lock the batch's conversations in one order, so that
-- two committers, here or in another replica, never deadlock on them; then, still
-- in one order, the senders' member rows, because the append moves the senders'
-- watermarks and the flush of receipts locks the same rows. NO KEY UPDATE lets
-- foreign-key checks of new members pass.
--
-- Every conversation is locked, also that of a sender who is no member: the append
-- looks again, and might find that the sender has become one. So the first count
-- is asked for by itself, not left to what the planner makes of the join.
-- $1 conversation ids and $2 sender ids, aligned, in any order and with doubles.
WITH locked AS MATERIALIZED (
    SELECT id
    FROM conversation
    WHERE id = ANY ($1::uuid[])
    ORDER BY id
    FOR NO KEY UPDATE
)
SELECT
    (SELECT count(*) FROM locked) AS conversations,
    (
        SELECT count(*)
        FROM (
            SELECT 1
            FROM locked
            JOIN (
                SELECT DISTINCT s.conversation_id, s.user_id
                FROM unnest($1::uuid[], $2::uuid[]) AS s (conversation_id, user_id)
            ) AS sender ON sender.conversation_id = locked.id
            JOIN member AS m ON m.conversation_id = sender.conversation_id AND m.user_id = sender.user_id
            ORDER BY m.conversation_id, m.user_id
            FOR NO KEY UPDATE OF m
        ) AS own
    ) AS members
