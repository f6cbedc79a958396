-- +goose Up
-- told_at is when user.deleted was emitted again; NULL: only at deleted_at.
ALTER TABLE deletion ADD COLUMN told_at timestamptz NULL;

-- A search looks for the exact user name first, whatever else begins so.
CREATE INDEX profile_username ON profile (lower(username)) WHERE deleted_at IS NULL;

-- +goose Down
DROP INDEX profile_username;
ALTER TABLE deletion DROP COLUMN told_at;
