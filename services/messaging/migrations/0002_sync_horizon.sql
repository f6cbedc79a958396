-- +goose Up
-- The newest transaction id that is known to be on the disk: every id below it
-- has been given out for good. PostgreSQL gives out ids above it a second time
-- if it crashes before anything tells of their first use. One row.
CREATE TABLE sync_horizon (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    xid      xid8    NOT NULL
) WITH (fillfactor = 10);

-- +goose Down
DROP TABLE sync_horizon;
