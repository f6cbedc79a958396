-- name: OAuthFlowPut :exec
INSERT INTO oauth_flow (state_hash, provider, redirect_uri, client_challenge, session_id, expires_at)
VALUES (@state_hash, @provider, @redirect_uri, @client_challenge, @session_id, @expires_at);

-- Taken whatever comes of it: a flow is good for one try.
-- name: OAuthFlowTake :one
DELETE FROM oauth_flow WHERE state_hash = @state_hash
RETURNING provider, redirect_uri, client_challenge, session_id, expires_at;

-- name: OAuthFlowPrune :execrows
DELETE FROM oauth_flow WHERE state_hash IN (
    SELECT f.state_hash FROM oauth_flow f WHERE f.expires_at < @before::timestamptz LIMIT @batch FOR UPDATE SKIP LOCKED);

-- name: OAuthTicketPut :exec
INSERT INTO oauth_ticket (ticket_hash, provider, issuer, subject, email, email_verified, name, expires_at)
VALUES (@ticket_hash, @provider, @issuer, @subject, @email, @email_verified, @name, @expires_at);

-- In the transaction of the registration: one that fails gives the ticket back.
-- name: OAuthTicketTake :one
DELETE FROM oauth_ticket WHERE ticket_hash = @ticket_hash AND expires_at > @now
RETURNING provider, issuer, subject, email, email_verified, name;

-- name: OAuthTicketPrune :execrows
DELETE FROM oauth_ticket WHERE ticket_hash IN (
    SELECT t.ticket_hash FROM oauth_ticket t WHERE t.expires_at < @before::timestamptz LIMIT @batch FOR UPDATE SKIP LOCKED);

-- name: IdentityCreate :exec
INSERT INTO oauth_identity (id, account_id, provider, issuer, subject, email, linked_at, last_used_at)
VALUES (@id, @account_id, @provider, @issuer, @subject, @email, @linked_at, @last_used_at);

-- name: IdentityOwner :one
SELECT account_id FROM oauth_identity WHERE issuer = @issuer AND subject = @subject;

-- Under the account's lock: no row if the identity was unlinked meanwhile.
-- name: IdentityUse :execrows
UPDATE oauth_identity SET last_used_at = @used_at::timestamptz, email = coalesce(nullif(@email, ''), email)
WHERE issuer = @issuer AND subject = @subject AND account_id = @account_id;

-- name: IdentityDelete :one
DELETE FROM oauth_identity WHERE id = @id AND account_id = @account_id RETURNING provider;

-- name: IdentityList :many
SELECT id, provider, email, linked_at, last_used_at FROM oauth_identity WHERE account_id = @account_id ORDER BY linked_at, id;

-- name: IdentitiesDrop :many
DELETE FROM oauth_identity WHERE account_id = @account_id RETURNING provider;

-- Whether the account has a password, or an identity of a provider that is still there.
-- name: AccountCanLogIn :one
SELECT (account.password_hash <> '' OR EXISTS (
    SELECT FROM oauth_identity i WHERE i.account_id = account.id AND i.issuer = ANY(@issuers::text[])))::boolean AS can_log_in
FROM account WHERE account.id = @id;

-- name: EmailOwned :one
SELECT EXISTS (SELECT FROM account WHERE email_key = @email_key);
