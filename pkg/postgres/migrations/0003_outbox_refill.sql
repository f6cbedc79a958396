-- Where the filling of a stream that was made anew has come to: the rows after
-- (refill_at, refill_id) up to refill_until are still to be published once more.
-- NULL: none. The rows themselves are not touched: to write three days of them
-- twice would be as much log for a crashed database to replay.

-- +goose Up

ALTER TABLE outbox_stream
    ADD COLUMN refill_at    timestamptz,
    ADD COLUMN refill_id    uuid,
    ADD COLUMN refill_until timestamptz;

-- +goose Down

ALTER TABLE outbox_stream DROP COLUMN refill_at, DROP COLUMN refill_id, DROP COLUMN refill_until;
