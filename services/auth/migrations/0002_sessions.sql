-- Where and with what a session was last used; who of the accounts may log in, and what is verified.
-- A release before this one leaves the new columns at their defaults.

-- +goose Up
ALTER TABLE session
    -- At the last refresh. Shown to the person; decides nothing.
    ADD COLUMN address    text NOT NULL DEFAULT '',
    ADD COLUMN user_agent text NOT NULL DEFAULT '';

ALTER TABLE account
    ADD COLUMN email_verified_at   timestamptz NULL,
    ADD COLUMN password_changed_at timestamptz NULL,
    -- Suspended while suspended_at is set and suspended_until, if set, has not come.
    ADD COLUMN suspended_at        timestamptz NULL,
    ADD COLUMN suspended_until     timestamptz NULL,
    -- Why, for admins.
    ADD COLUMN suspension_note     text        NOT NULL DEFAULT '',
    ADD CONSTRAINT account_suspension CHECK (suspended_at IS NOT NULL OR suspended_until IS NULL);

-- The admins are counted before one of them goes.
CREATE INDEX account_admin ON account (id) WHERE role = 'admin';
CREATE INDEX account_suspended_until ON account (suspended_until) WHERE suspended_until IS NOT NULL;

-- +goose Down
DROP INDEX account_suspended_until;
DROP INDEX account_admin;
ALTER TABLE account
    DROP COLUMN email_verified_at, DROP COLUMN password_changed_at,
    DROP COLUMN suspended_at, DROP COLUMN suspended_until, DROP COLUMN suspension_note;
ALTER TABLE session DROP COLUMN address, DROP COLUMN user_agent;
