-- +goose Up
-- Provisioning installs it, because a service's role may not: this line says so
-- where it was forgotten, and tells sqlc what there is.
CREATE EXTENSION IF NOT EXISTS pg_trgm;

ALTER TABLE profile
    ADD COLUMN bio          text        NOT NULL DEFAULT '',
    -- A canonical BCP 47 tag, or empty.
    ADD COLUMN locale       text        NOT NULL DEFAULT '',
    ADD COLUMN discoverable boolean     NOT NULL DEFAULT true,
    -- Set when the person was deleted: everything that can be read is empty then.
    ADD COLUMN deleted_at   timestamptz NULL,
    -- What a search looks through: the folded names, each word after a space (see
    -- name.go). Empty in rows that the release before has written: a job fills them.
    ADD COLUMN search       text        NOT NULL DEFAULT '';

CREATE INDEX profile_search ON profile USING gin (search gin_trgm_ops);
CREATE INDEX profile_unindexed ON profile (id) WHERE search = '' AND deleted_at IS NULL;

-- standing is a projection of auth's suspensions: who is hidden from searches. It
-- is apart from profile because it may be told before there is one.
CREATE TABLE standing (
    user_id   uuid    PRIMARY KEY,
    suspended boolean NOT NULL,
    -- The highest version of the account that was heard of.
    version   bigint  NOT NULL
);

-- deletion is a request to be deleted. It is gone when the person takes it back,
-- and stays for ever as the head of the ledger when it was carried out.
CREATE TABLE deletion (
    user_id      uuid        PRIMARY KEY,
    -- The key of the request's events.
    request_id   uuid        NOT NULL,
    requested_at timestamptz NOT NULL,
    due_at       timestamptz NOT NULL,
    -- When user.deleted was emitted.
    deleted_at   timestamptz NULL
);
CREATE INDEX deletion_due ON deletion (due_at) WHERE deleted_at IS NULL;

-- erasure is the ledger: which services were asked to forget a person, and have.
CREATE TABLE erasure (
    user_id      uuid        NOT NULL,
    service      text        NOT NULL,
    requested_at timestamptz NOT NULL,
    done_at      timestamptz NULL,
    PRIMARY KEY (user_id, service)
);
CREATE INDEX erasure_open ON erasure (requested_at) WHERE done_at IS NULL;

-- export_run counts exports of data, for the limit per day.
CREATE TABLE export_run (
    id         uuid        PRIMARY KEY,
    user_id    uuid        NOT NULL,
    started_at timestamptz NOT NULL
);
CREATE INDEX export_run_user ON export_run (user_id, started_at);
CREATE INDEX export_run_started ON export_run (started_at);

-- +goose Down
DROP TABLE export_run, erasure, deletion, standing;
DROP INDEX profile_search, profile_unindexed;
ALTER TABLE profile DROP COLUMN bio, DROP COLUMN locale, DROP COLUMN discoverable, DROP COLUMN deleted_at, DROP COLUMN search;
