-- One-time codes by mail, and the notices that a transaction owes somebody.

-- +goose Up
CREATE TABLE one_time_code (
    account_id uuid        NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    -- 'verify_email', 'change_email', 'reset_password', …: see code.go.
    purpose    text        NOT NULL,
    -- Changes with every code that is sent.
    id         uuid        NOT NULL,
    -- HMAC-SHA-256; see code.go.
    code_hash  bytea       NOT NULL CHECK (octet_length(code_hash) = 32),
    -- Where it was sent: what a right code proves is this address.
    email      text        NOT NULL,
    tries      int         NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- One live code per purpose.
    PRIMARY KEY (account_id, purpose)
);

CREATE INDEX one_time_code_expires_at ON one_time_code (expires_at);

-- A mail that tells what has happened, stored with what it tells of and deleted when the queue of mails has
-- it. It holds no code.
CREATE TABLE mail_notice (
    id         uuid        PRIMARY KEY,
    account_id uuid        NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    email      text        NOT NULL,
    template   text        NOT NULL,
    data       jsonb       NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE INDEX mail_notice_created_at ON mail_notice (created_at);
CREATE INDEX mail_notice_account ON mail_notice (account_id);

-- +goose Down
DROP TABLE mail_notice;
DROP TABLE one_time_code;
