-- Log-ins share a lock on the account before they begin a session: they are over
-- when this one is taken, or find no account.
-- name: AccountLockForErase :one
SELECT role FROM account WHERE id = @id FOR UPDATE;

-- The names of what was done stay, for the admins' record: who did it, from where
-- and with what go. What the person did as an admin is found by its actor.
-- name: AuditForget :exec
UPDATE audit SET session_id = NULL, address = '', user_agent = '', details = '{}' WHERE account_id = @id::uuid;

-- name: AuditForgetAdmin :exec
UPDATE audit SET session_id = NULL, address = '', user_agent = '', details = '{}'
WHERE actor_id = @id::uuid AND actor = 'admin';

-- Entries about others that were made with the person's token: the origin is for those to know, the person is not.
-- name: AuditForgetBearer :exec
UPDATE audit SET actor_id = NULL WHERE actor_id = @id::uuid AND actor = 'anonymous';

-- Whatever refers to the account goes with it.
-- name: AccountErase :exec
DELETE FROM account WHERE id = @id;
