-- name: SigningKeys :many
SELECT kid, generation, public_key, sealed_seed, active_from FROM signing_key ORDER BY generation;

-- No row inserted: another replica has just made this generation.
-- name: SigningKeyCreate :execrows
INSERT INTO signing_key (kid, generation, public_key, sealed_seed, created_at, active_from)
VALUES (@kid, @generation, @public_key, @sealed_seed, @created_at, @active_from)
ON CONFLICT (generation) DO NOTHING;

-- name: SigningKeyDelete :exec
DELETE FROM signing_key WHERE kid = ANY(@kids::text[]);
