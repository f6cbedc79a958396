-- name: AccountExport :one
SELECT id, username, email, email_verified_at, display_name, role, created_at, password_changed_at, username_changed_at,
    suspended_at, suspended_until,
    EXISTS (SELECT FROM second_factor AS f WHERE f.account_id = account.id AND f.confirmed_at IS NOT NULL) AS second_factor
FROM account WHERE id = @id;

-- name: SessionsExport :many
SELECT id, device_name, address, user_agent, created_at, rotated_at, expires_at, idle_expires_at, revoked_at
FROM session
WHERE account_id = @account_id AND id > @after_id
ORDER BY id
LIMIT @page_size;

-- name: NoticesExport :many
SELECT id, email, template, created_at FROM mail_notice WHERE account_id = @account_id ORDER BY created_at, id;
