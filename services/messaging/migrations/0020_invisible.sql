-- +goose Up
-- A projection of user's settings: whoever is invisible is not shown to write. The
-- version is that of the last user.presence_settings_changed.
ALTER TABLE person
    ADD COLUMN invisible         boolean NOT NULL DEFAULT false,
    ADD COLUMN invisible_version bigint  NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE person DROP COLUMN invisible, DROP COLUMN invisible_version;
