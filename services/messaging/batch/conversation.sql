-- Step 1 of the commit of a single send: lock its conversation.
-- $1 conversation id.
SELECT 1
FROM conversation
WHERE id = $1
FOR NO KEY UPDATE
