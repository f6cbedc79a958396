-- The second factor of log-ins.

-- +goose Up
CREATE TABLE second_factor (
    account_id    uuid        PRIMARY KEY REFERENCES account (id) ON DELETE CASCADE,
    -- The TOTP secret, sealed with AES-256-GCM and bound to the account; see second_factor.go.
    sealed_secret bytea       NOT NULL,
    created_at    timestamptz NOT NULL,
    -- NULL: enrolled, nothing is asked for it yet.
    confirmed_at  timestamptz NULL,
    -- The newest time step whose code was taken: it and all before are spent.
    last_step     bigint      NOT NULL
);

CREATE TABLE recovery_code (
    account_id uuid  NOT NULL REFERENCES second_factor (account_id) ON DELETE CASCADE,
    -- HMAC-SHA-256; see second_factor.go. The row is deleted when the code is used.
    code_hash  bytea NOT NULL CHECK (octet_length(code_hash) = 32),
    PRIMARY KEY (account_id, code_hash)
);

-- A log-in whose password was right and whose second factor is awaited.
CREATE TABLE log_in_challenge (
    -- SHA-256 of what the client holds.
    token_hash  bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    account_id  uuid        NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    device_name text        NOT NULL,
    tries       int         NOT NULL DEFAULT 0,
    expires_at  timestamptz NOT NULL
);

CREATE INDEX log_in_challenge_account ON log_in_challenge (account_id);
CREATE INDEX log_in_challenge_expires_at ON log_in_challenge (expires_at);

-- +goose Down
DROP TABLE log_in_challenge;
DROP TABLE recovery_code;
DROP TABLE second_factor;
