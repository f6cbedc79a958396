-- The newest replaces the one before: one live code per purpose.
-- name: CodePut :exec
INSERT INTO one_time_code (account_id, purpose, id, code_hash, email, tries, created_at, expires_at)
VALUES (@account_id, @purpose, @id, @code_hash, @email, 0, @created_at, @expires_at)
ON CONFLICT (account_id, purpose) DO UPDATE
SET id = excluded.id, code_hash = excluded.code_hash, email = excluded.email, tries = 0,
    created_at = excluded.created_at, expires_at = excluded.expires_at;

-- Takes a try, if the code has one left, before anything is compared. No row: there is nothing to compare with.
-- name: CodeTry :one
UPDATE one_time_code SET tries = tries + 1
WHERE account_id = @account_id AND purpose = @purpose AND expires_at > @now AND tries < @max_tries
RETURNING id, code_hash, email;

-- By its id: a code that was replaced or used meanwhile is not there any more.
-- name: CodeUse :execrows
DELETE FROM one_time_code WHERE account_id = @account_id AND purpose = @purpose AND id = @id;

-- name: CodesDrop :exec
DELETE FROM one_time_code WHERE account_id = @account_id;

-- name: CodesPrune :execrows
DELETE FROM one_time_code WHERE (account_id, purpose) IN (
    SELECT c.account_id, c.purpose FROM one_time_code c WHERE c.expires_at < @now LIMIT @batch FOR UPDATE SKIP LOCKED);

-- name: NoticePut :exec
INSERT INTO mail_notice (id, account_id, email, template, data, created_at)
VALUES (@id, @account_id, @email, @template, @data, @created_at);

-- name: NoticesWaiting :many
SELECT id, email, template, data, created_at FROM mail_notice ORDER BY created_at LIMIT @batch;

-- name: NoticeDelete :exec
DELETE FROM mail_notice WHERE id = @id;
