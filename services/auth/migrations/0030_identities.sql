-- Accounts elsewhere that people log in with, and what is kept while they do.

-- +goose Up
CREATE TABLE oauth_identity (
    id           uuid        PRIMARY KEY,
    account_id   uuid        NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    -- The name in the configuration; who it is there, says the issuer.
    provider     text        NOT NULL,
    issuer       text        NOT NULL,
    subject      text        NOT NULL,
    -- As the provider had it at the last log-in; it decides nothing.
    email        text        NOT NULL,
    linked_at    timestamptz NOT NULL,
    last_used_at timestamptz NULL,
    CONSTRAINT oauth_identity_subject UNIQUE (issuer, subject),
    CONSTRAINT oauth_identity_provider UNIQUE (account_id, provider)
);

-- A flow between its start and its redirect. The state is known to the client and the browser only; what the
-- provider is asked to prove (nonce, PKCE) is derived from it and not kept.
CREATE TABLE oauth_flow (
    state_hash       bytea       PRIMARY KEY CHECK (octet_length(state_hash) = 32),
    provider         text        NOT NULL,
    redirect_uri     text        NOT NULL,
    -- SHA-256 of the client's verifier.
    client_challenge bytea       NOT NULL CHECK (octet_length(client_challenge) = 32),
    -- Set for linking: the session that asked for it.
    session_id       uuid        NULL REFERENCES session (id) ON DELETE CASCADE,
    expires_at       timestamptz NOT NULL
);

CREATE INDEX oauth_flow_expires_at ON oauth_flow (expires_at);
CREATE INDEX oauth_flow_session ON oauth_flow (session_id) WHERE session_id IS NOT NULL;

-- Somebody whom a provider has confirmed and who has no account yet.
CREATE TABLE oauth_ticket (
    ticket_hash    bytea       PRIMARY KEY CHECK (octet_length(ticket_hash) = 32),
    provider       text        NOT NULL,
    issuer         text        NOT NULL,
    subject        text        NOT NULL,
    email          text        NOT NULL,
    email_verified boolean     NOT NULL,
    name           text        NOT NULL,
    expires_at     timestamptz NOT NULL
);

CREATE INDEX oauth_ticket_expires_at ON oauth_ticket (expires_at);

-- +goose Down
DROP TABLE oauth_ticket;
DROP TABLE oauth_flow;
DROP TABLE oauth_identity;
