-- Profiles: what people see of each other.

-- +goose Up
CREATE TABLE profile (
    id              uuid        PRIMARY KEY,
    username        text        NOT NULL,
    display_name    text        NOT NULL,
    -- The key_version of this profile's last event.
    version         bigint      NOT NULL,
    -- The version of auth's account that username was taken from: the guard of listeners.
    account_version bigint      NOT NULL,
    -- When the account was registered.
    created_at      timestamptz NOT NULL
);

-- +goose Down
DROP TABLE profile;
