-- An enrolment that was not confirmed is replaced; a confirmed one stays, and no row is returned.
-- name: SecondFactorEnrol :execrows
INSERT INTO second_factor (account_id, sealed_secret, created_at, last_step)
VALUES (@account_id, @sealed_secret, @created_at, 0)
ON CONFLICT (account_id) DO UPDATE
SET sealed_secret = excluded.sealed_secret, created_at = excluded.created_at, last_step = 0
WHERE second_factor.confirmed_at IS NULL;

-- name: SecondFactorOf :one
SELECT sealed_secret, confirmed_at, last_step FROM second_factor WHERE account_id = @account_id;

-- name: SecondFactorStatus :one
SELECT f.confirmed_at, (SELECT count(*) FROM recovery_code r WHERE r.account_id = f.account_id)::int AS recovery_codes
FROM second_factor f WHERE f.account_id = @account_id AND f.confirmed_at IS NOT NULL;

-- Spends a time step. No row: it is spent already, and the code is refused.
-- name: SecondFactorSpend :execrows
UPDATE second_factor SET last_step = @step WHERE account_id = @account_id AND last_step < @step;

-- The secret in the condition: what was confirmed is what the code was made of.
-- name: SecondFactorConfirm :execrows
UPDATE second_factor SET confirmed_at = @confirmed_at::timestamptz, last_step = @step
WHERE account_id = @account_id AND confirmed_at IS NULL AND sealed_secret = @sealed_secret;

-- name: SecondFactorDelete :execrows
DELETE FROM second_factor WHERE account_id = @account_id AND confirmed_at IS NOT NULL;

-- name: RecoveryCodesLeft :one
SELECT count(*)::int FROM recovery_code WHERE account_id = @account_id;

-- name: RecoveryCodesPut :exec
INSERT INTO recovery_code (account_id, code_hash)
SELECT @account_id, unnest(@code_hashes::bytea[]);

-- name: RecoveryCodesDelete :exec
DELETE FROM recovery_code WHERE account_id = @account_id;

-- No row: no such code, or it was used.
-- name: RecoveryCodeUse :execrows
DELETE FROM recovery_code WHERE account_id = @account_id AND code_hash = @code_hash;

-- name: ChallengePut :exec
INSERT INTO log_in_challenge (token_hash, account_id, device_name, expires_at)
VALUES (@token_hash, @account_id, @device_name, @expires_at);

-- The challenges beyond the number that an account may have at once go, the oldest first, the one just made never.
-- name: ChallengeDropExcess :exec
DELETE FROM log_in_challenge WHERE token_hash IN (
    SELECT c.token_hash FROM log_in_challenge c WHERE c.account_id = @account_id
    ORDER BY c.token_hash = @token_hash DESC, c.expires_at DESC OFFSET @keep);

-- name: ChallengeOf :one
SELECT account_id, device_name FROM log_in_challenge WHERE token_hash = @token_hash AND expires_at > @now;

-- Takes a try before anything is compared.
-- name: ChallengeTry :execrows
UPDATE log_in_challenge SET tries = tries + 1
WHERE token_hash = @token_hash AND expires_at > @now AND tries < @max_tries;

-- No row: it was used, or the password has changed.
-- name: ChallengeUse :execrows
DELETE FROM log_in_challenge WHERE token_hash = @token_hash;

-- name: ChallengesDrop :exec
DELETE FROM log_in_challenge WHERE account_id = @account_id;

-- name: ChallengesPrune :execrows
DELETE FROM log_in_challenge WHERE token_hash IN (
    SELECT c.token_hash FROM log_in_challenge c WHERE c.expires_at < @now LIMIT @batch FOR UPDATE SKIP LOCKED);
