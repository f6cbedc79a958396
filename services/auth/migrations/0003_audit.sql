-- What was done, or tried, to accounts. Written in the transaction of what it tells of, pruned by a job.

-- +goose Up
CREATE TABLE audit (
    id         uuid        PRIMARY KEY,
    at         timestamptz NOT NULL,
    -- The account that it is about; NULL for a name that nobody has. No reference: the record outlives the row.
    account_id uuid        NULL,
    action     text        NOT NULL,
    -- Empty: it was done. Else the reason (parley.error.v1.Reason without its prefix) of the refusal.
    refused    text        NOT NULL DEFAULT '',
    -- 'anonymous', 'self', 'admin', 'operator' or 'system'.
    actor      text        NOT NULL CHECK (actor IN ('anonymous', 'self', 'admin', 'operator', 'system')),
    actor_id   uuid        NULL,
    session_id uuid        NULL,
    address    text        NOT NULL DEFAULT '',
    user_agent text        NOT NULL DEFAULT '',
    details    jsonb       NOT NULL DEFAULT '{}'
);

CREATE INDEX audit_account ON audit (account_id, at DESC, id DESC);
CREATE INDEX audit_at ON audit (at DESC, id DESC);

-- +goose Down
DROP TABLE audit;
