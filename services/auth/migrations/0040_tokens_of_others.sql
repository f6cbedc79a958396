-- Entries of the record that were made with another account's token, found by whose it was when that person is
-- forgotten: the token's owner goes, where it came from is the account's to know.

-- +goose Up
CREATE INDEX audit_bearer ON audit (actor_id) WHERE actor = 'anonymous' AND actor_id IS NOT NULL;

-- +goose Down
DROP INDEX audit_bearer;
