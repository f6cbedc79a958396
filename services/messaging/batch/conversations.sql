-- Step 1 of a group commit: lock the batch's conversations in one order, so that
-- two committers, here or in another replica, never deadlock on them. NO KEY
-- UPDATE lets foreign-key checks of new members pass.
-- $1 conversation ids, in any order and with doubles.
SELECT count(*)
FROM (
    SELECT 1
    FROM conversation
    WHERE id = ANY ($1::uuid[])
    ORDER BY id
    FOR NO KEY UPDATE
) AS locked
