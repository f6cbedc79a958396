-- Changes of user names, and when a session's owner was last proved.

-- +goose Up
ALTER TABLE account ADD COLUMN username_changed_at timestamptz NULL;

-- NULL: by the log-in that began the session.
ALTER TABLE session ADD COLUMN confirmed_at timestamptz NULL;

-- Names that nobody has and that are kept for those who had them. A job deletes
-- those whose time is over, and deleting the account does.
CREATE TABLE username_hold (
    username_key text        PRIMARY KEY,
    account_id   uuid        NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    -- As it was typed.
    username     text        NOT NULL,
    held_until   timestamptz NOT NULL
);
CREATE INDEX username_hold_account ON username_hold (account_id);
CREATE INDEX username_hold_until ON username_hold (held_until);

-- A new account takes no name that is held, whichever way it is made. It looks
-- after the insert, which waits for whoever is just giving the name away: by then
-- the hold is to be seen. To those who insert it looks like any name that is taken.
-- +goose StatementBegin
CREATE FUNCTION refuse_held_username() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM username_hold AS h JOIN made AS m ON h.username_key = m.username_key) THEN
        RAISE unique_violation USING CONSTRAINT = 'account_username_key', MESSAGE = 'the user name is held';
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER account_username_held AFTER INSERT ON account
    REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_held_username();

-- The record of what admins did, found by who they are when they are forgotten.
CREATE INDEX audit_admin ON audit (actor_id) WHERE actor = 'admin';

-- +goose Down
DROP INDEX audit_admin;
DROP TRIGGER account_username_held ON account;
DROP FUNCTION refuse_held_username;
DROP TABLE username_hold;
ALTER TABLE session DROP COLUMN confirmed_at;
ALTER TABLE account DROP COLUMN username_changed_at;
