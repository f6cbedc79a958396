-- The newest replaces the one before: one live code per purpose. No row: the one before was made after keep_after, and
-- can still be tried.
-- name: CodePut :execrows
INSERT INTO one_time_code (account_id, purpose, id, code_hash, email, tries, created_at, expires_at)
VALUES (@account_id, @purpose, @id, @code_hash, @email, 0, @created_at, @expires_at)
ON CONFLICT (account_id, purpose) DO UPDATE
SET id = excluded.id, code_hash = excluded.code_hash, email = excluded.email, tries = 0,
    created_at = excluded.created_at, expires_at = excluded.expires_at
WHERE one_time_code.created_at <= @keep_after OR one_time_code.tries >= @max_tries;

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

-- What a session has asked for and not finished. The codes of the account itself stay: they let nobody in
-- who has not got the mailbox.
-- name: CodesDropOfSessions :exec
DELETE FROM one_time_code WHERE account_id = @account_id AND purpose <> ALL(@kept::text[]);

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
