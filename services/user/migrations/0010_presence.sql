-- +goose Up
-- presence is what was told about a person last: the truth of who is connected is
-- the gateways', and its roll stands in Redis. Times are passed in; the epoch stands
-- for never.
CREATE TABLE presence (
    user_id       uuid        PRIMARY KEY,
    online        boolean     NOT NULL,
    -- How many devices are connected, a byte for each kind.
    devices       bytea       NOT NULL,
    -- While online: since when. Then: when the last device left.
    last_seen_at  timestamptz NOT NULL,
    -- The person is offline to others, since shown_seen_at.
    invisible     boolean     NOT NULL DEFAULT false,
    shown_seen_at timestamptz NOT NULL,
    -- Rise with every change that the own devices, that others may see. They are
    -- microseconds of the clock, so that they rise over a restored backup as well.
    version       bigint      NOT NULL,
    shown_version bigint      NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX presence_online ON presence (user_id) WHERE online;

-- +goose Down
DROP TABLE presence;
