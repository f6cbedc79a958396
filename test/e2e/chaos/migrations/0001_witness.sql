-- What the witness was told.

-- +goose Up
-- Without a unique constraint: whether something was told twice is the question.
CREATE TABLE told (
    type        text   NOT NULL,
    key         text   NOT NULL,
    key_version bigint NOT NULL
);

-- +goose Down
DROP TABLE told;
