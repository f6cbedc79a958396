-- name: PersonUpsert :exec
INSERT INTO person (id, version)
VALUES (@id, @version)
ON CONFLICT (id) DO UPDATE SET version = excluded.version
WHERE person.version < excluded.version;

-- name: PersonExists :one
SELECT EXISTS (SELECT 1 FROM person WHERE id = @id);
