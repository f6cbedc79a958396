-- The tables of the runtime, in the schema of every service.

-- +goose Up

-- One row per transaction that emitted events, with all of them. Written in that
-- transaction, published after it, marked when JetStream has acknowledged all.
-- Daily partitions, made by the program: there is no default partition.
CREATE TABLE outbox (
    id           uuid        NOT NULL,
    -- The clock of the process, never now(); microseconds.
    created_at   timestamptz NOT NULL,
    -- A serialized parley.event.v1.EventBatch.
    envelopes    bytea       NOT NULL,
    -- When not NULL: aligned with the batch's events, it gives each its
    -- key_version, assigned by the statement that wrote this row. A NULL element
    -- says that this event did not happen.
    key_versions bigint[],
    published_at timestamptz,
    PRIMARY KEY (created_at, id)
) PARTITION BY RANGE (created_at);

-- What the relay reads: as a rule nearly empty.
CREATE INDEX outbox_unpublished ON outbox (created_at) WHERE published_at IS NULL;

-- The stream that the outbox last filled, by the time of its creation. Another
-- time means that the stream was lost and made anew: the rows that are kept are
-- then published again.
CREATE TABLE outbox_stream (
    domain  text PRIMARY KEY,
    created text NOT NULL
);

-- What a listener of mode "once" has done: in one transaction with the effect.
CREATE TABLE inbox (
    listener text        NOT NULL,
    event_id uuid        NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (listener, event_id)
);

CREATE INDEX inbox_at ON inbox (at);

-- Who leads the periodic jobs of this service. renewal rises while the holder
-- lives; who sees it stand still for the lease's life, by his own stopwatch,
-- takes over. Clocks of machines do not matter.
CREATE TABLE job_lease (
    name       text        PRIMARY KEY,
    holder     text        NOT NULL,
    renewal    bigint      NOT NULL,
    renewed_at timestamptz NOT NULL
);

-- When a job last ran, so that a new leader does not run it at once again.
CREATE TABLE job_run (
    name       text        PRIMARY KEY,
    started_at timestamptz NOT NULL,
    ended_at   timestamptz,
    error      text        NOT NULL DEFAULT ''
);

-- +goose Down

DROP TABLE job_run;
DROP TABLE job_lease;
DROP TABLE inbox;
DROP TABLE outbox_stream;
DROP TABLE outbox;
