-- name: AccountExport :one
SELECT id, username, email, email_verified_at, display_name, role, created_at, password_changed_at, username_changed_at,
    suspended_at, suspended_until,
    EXISTS (SELECT FROM second_factor AS f WHERE f.account_id = account.id AND f.confirmed_at IS NOT NULL) AS second_factor
FROM account WHERE id = @id;

-- name: SessionsExport :many
SELECT id, device_name, address, user_agent, created_at, rotated_at, expires_at, idle_expires_at, revoked_at, confirmed_at
FROM session
WHERE account_id = @account_id AND id > @after_id
ORDER BY id
LIMIT @page_size;

-- name: NoticesExport :many
SELECT id, email, template, data, created_at FROM mail_notice WHERE account_id = @account_id ORDER BY created_at, id;

-- name: IdentitiesExport :many
SELECT provider, issuer, subject, email, linked_at, last_used_at FROM oauth_identity WHERE account_id = @account_id ORDER BY linked_at, id;

-- What the person did as an admin, newest first; the position is that of the last row of the page before.
-- name: AuditByAdmin :many
SELECT id, at, action, refused, session_id, address, user_agent
FROM audit
WHERE actor_id = @admin_id::uuid AND actor = 'admin'
  AND (sqlc.narg(before_at)::timestamptz IS NULL
       OR (at, id) < (sqlc.narg(before_at)::timestamptz, sqlc.narg(before_id)::uuid))
ORDER BY at DESC, id DESC
LIMIT @page_size;

-- name: CodesExport :many
SELECT purpose, email, tries, created_at, expires_at FROM one_time_code WHERE account_id = @account_id ORDER BY purpose;

-- name: ChallengesExport :many
SELECT device_name, tries, expires_at FROM log_in_challenge WHERE account_id = @account_id ORDER BY expires_at, token_hash;
