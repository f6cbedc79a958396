-- +goose Up
-- Who was deleted stays as an id that nobody can start a conversation with, also if
-- account.registered comes late.
ALTER TABLE person ADD COLUMN forgotten boolean NOT NULL DEFAULT false;

-- +goose Down
ALTER TABLE person DROP COLUMN forgotten;
