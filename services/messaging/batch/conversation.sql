-- Step 1 of the commit of a single send: lock its conversation, unless privacy has to
-- be asked first. Then nothing is locked, so the transaction has written nothing and
-- its end waits for no disk.
-- $1 conversation id. $2 permission states checked at or before this are stale.
SELECT 1
FROM conversation
WHERE id = $1 AND (direct_low IS NULL OR checked_at > $2)
FOR NO KEY UPDATE
