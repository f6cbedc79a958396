-- Accounts, sessions and the keys that sign access tokens.
-- No column has a default taken from the database's clock: time comes from the service.

-- +goose Up
CREATE TABLE account (
    id            uuid        PRIMARY KEY,
    -- As typed by the person; the *_key columns hold the form in which they are compared.
    username      text        NOT NULL,
    username_key  text        NOT NULL CONSTRAINT account_username_key UNIQUE,
    email         text        NOT NULL,
    email_key     text        NOT NULL CONSTRAINT account_email_key UNIQUE,
    display_name  text        NOT NULL,
    -- 'user', 'moderator' or 'admin': goes into every access token.
    role          text        NOT NULL CHECK (role IN ('user', 'moderator', 'admin')),
    -- See password.go for the form.
    password_hash text        NOT NULL,
    -- The key_version of the account's last event.
    version       bigint      NOT NULL,
    created_at    timestamptz NOT NULL
);

-- One row per session, whatever the number of its refreshes: an old refresh token is
-- known by its tag (see refresh.go), so no history of tokens is kept.
CREATE TABLE session (
    id              uuid        PRIMARY KEY,
    account_id      uuid        NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    device_name     text        NOT NULL,
    -- SHA-256 of the one refresh token that may be used next.
    token_hash      bytea       NOT NULL CHECK (octet_length(token_hash) = 32),
    -- When that token was issued: the grace for its predecessor counts from here.
    rotated_at      timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    -- The absolute end, fixed when the session begins.
    expires_at      timestamptz NOT NULL,
    -- The end when nobody refreshes; moves with every refresh, never past expires_at.
    idle_expires_at timestamptz NOT NULL,
    revoked_at      timestamptz NULL
)
-- Every refresh updates the row: room for the new version in the same page.
WITH (fillfactor = 70);

CREATE INDEX session_account_id ON session (account_id);
-- No index on the columns that a refresh changes, so that those updates stay heap-only;
-- pruning walks by the absolute end and by the revocation.
CREATE INDEX session_expires_at ON session (expires_at);
CREATE INDEX session_revoked_at ON session (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE signing_key (
    kid         text        PRIMARY KEY,
    -- Dense from 1. Two replicas that rotate at once want the same number, and one gets it.
    generation  bigint      NOT NULL CONSTRAINT signing_key_generation UNIQUE,
    public_key  bytea       NOT NULL CHECK (octet_length(public_key) = 32),
    -- The Ed25519 seed, sealed with AES-256-GCM; see key.go.
    sealed_seed bytea       NOT NULL,
    created_at  timestamptz NOT NULL,
    -- It signs from here until the next generation's active_from.
    active_from timestamptz NOT NULL
);

-- +goose Down
DROP TABLE signing_key;
DROP TABLE session;
DROP TABLE account;
