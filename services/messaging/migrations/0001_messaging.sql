-- +goose Up
-- Times are always passed in by the service; nothing here calls now().

-- person is a projection of auth's account.registered: whom a conversation may
-- name. version is the highest key_version seen of the account.
CREATE TABLE person (
    id      uuid   PRIMARY KEY,
    version bigint NOT NULL
);

-- conversation is the head of a log. Its row lock hands out seq and ordinal, so
-- whatever changes the log changes this row in the same transaction.
CREATE TABLE conversation (
    id                 uuid        PRIMARY KEY,
    kind               smallint    NOT NULL, -- parley.messaging.v1.ConversationKind
    -- The two people of a direct conversation, the smaller id first.
    direct_low         uuid,
    direct_high        uuid,
    head_seq           bigint      NOT NULL,
    head_ordinal       bigint      NOT NULL,
    last_at            timestamptz NOT NULL, -- created_at of the entry head_seq
    last_xid           xid8        NOT NULL, -- transaction that last changed this row, for Sync
    closed             boolean     NOT NULL DEFAULT false,
    -- Permission state of a direct conversation: may the one write to the other,
    -- as privacy said at checked_at. NULL is stale. Whoever marks it stale raises
    -- permission_version in the same update, so that an answer which was asked for
    -- before cannot overwrite the mark.
    may_send_low       boolean     NOT NULL DEFAULT false,
    may_send_high      boolean     NOT NULL DEFAULT false,
    checked_at         timestamptz,
    permission_version bigint      NOT NULL DEFAULT 0,
    member_version     bigint      NOT NULL DEFAULT 1,
    created_at         timestamptz NOT NULL,
    CONSTRAINT conversation_pair UNIQUE (direct_low, direct_high),
    CONSTRAINT conversation_pair_ordered CHECK (direct_low < direct_high)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
-- No index on head_seq, last_at or last_xid: every send changes them, and without
-- one the update stays within the page (HOT).

-- member is one person's place in a conversation. Rows are never deleted: leaving
-- sets left_seq, and Sync tells of it.
CREATE TABLE member (
    conversation_id uuid     NOT NULL REFERENCES conversation (id),
    user_id         uuid     NOT NULL,
    role            smallint NOT NULL DEFAULT 0,
    join_seq        bigint   NOT NULL,
    left_seq        bigint   NOT NULL DEFAULT 0, -- 0 while a member
    read_seq        bigint   NOT NULL DEFAULT 0,
    read_ordinal    bigint   NOT NULL DEFAULT 0, -- the ordinal at read_seq
    delivered_seq   bigint   NOT NULL DEFAULT 0,
    mark_xid        xid8     NOT NULL, -- transaction that last changed this row, for Sync
    PRIMARY KEY (conversation_id, user_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX member_user ON member (user_id, conversation_id);

-- entry is the log. (conversation_id, seq) is unique because the head's lock hands
-- it out; the partition key has to be in the constraint. created_at never falls
-- as seq rises. No foreign key: the head's lock is held by every insert anyway.
-- Partitions by month are made ahead by a job, and at start.
CREATE TABLE entry (
    conversation_id   uuid        NOT NULL,
    seq               bigint      NOT NULL,
    created_at        timestamptz NOT NULL,
    ordinal           bigint      NOT NULL, -- messages up to and with this entry
    kind              smallint    NOT NULL, -- field number of the body in parley.messaging.v1.Entry
    sender_id         uuid        NOT NULL,
    client_message_id uuid,
    payload           bytea       NOT NULL, -- the body, as protobuf
    PRIMARY KEY (conversation_id, seq, created_at)
) PARTITION BY RANGE (created_at);

-- entry_span maps seq to time, so that reading history touches only the
-- partitions that hold it: one row whenever a log enters a new month (of UTC, like
-- the partitions). All entries of a span lie in the month of its from_time.
CREATE TABLE entry_span (
    conversation_id uuid        NOT NULL,
    from_seq        bigint      NOT NULL,
    from_time       timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, from_seq)
);

-- send_key makes SendMessage idempotent for seven days; a job deletes older ones.
CREATE TABLE send_key (
    sender_id         uuid        NOT NULL,
    client_message_id uuid        NOT NULL,
    conversation_id   uuid        NOT NULL,
    seq               bigint      NOT NULL,
    ordinal           bigint      NOT NULL,
    created_at        timestamptz NOT NULL,
    content_hash      bytea       NOT NULL,
    CONSTRAINT send_key_pkey PRIMARY KEY (sender_id, client_message_id)
);
CREATE INDEX send_key_created ON send_key (created_at);

-- +goose Down
DROP TABLE send_key, entry_span, entry, member, conversation, person;
