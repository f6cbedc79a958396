-- Locks conversations alone, in the order of lock.sql, to store what privacy
-- answered about them.
-- $1 conversation ids, in any order and with doubles.
SELECT count(*)
FROM (
    SELECT 1
    FROM conversation
    WHERE id = ANY ($1::uuid[])
    ORDER BY id
    FOR NO KEY UPDATE
) AS locked
