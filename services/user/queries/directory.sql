-- People one of whose names, or a word of them, begins with what was typed. pattern
-- is "% typed%": the space and the letters after it are trigrams of the index.
-- Exact user names first, then those that begin so, then the others.
--
-- Of those that only begin so no more than some are looked at: two letters fit a
-- tenth of all people, and in what order the rest would come means nothing. The
-- person whose user name it is is found apart from them.
-- name: DirectoryByPrefix :many
WITH candidate AS (
    (SELECT p.id, p.username, p.display_name, p.bio, p.version, p.created_at, p.search FROM profile AS p
     WHERE lower(p.username) = @typed::text AND p.search LIKE @pattern AND p.discoverable AND p.deleted_at IS NULL)
    UNION
    (SELECT p.id, p.username, p.display_name, p.bio, p.version, p.created_at, p.search FROM profile AS p
     WHERE p.search LIKE @pattern AND p.discoverable AND p.deleted_at IS NULL
     LIMIT @candidates)
)
SELECT c.id, c.username, c.display_name, c.bio, c.version, c.created_at
FROM candidate AS c
WHERE c.id <> @caller::uuid
  AND NOT EXISTS (SELECT 1 FROM deletion AS d WHERE d.user_id = c.id)
  AND NOT EXISTS (SELECT 1 FROM standing AS s WHERE s.user_id = c.id AND s.suspended)
ORDER BY lower(c.username) = @typed::text DESC, starts_with(lower(c.username), @typed::text) DESC, length(c.search), c.id
LIMIT @page_size;

-- People one of whose words is spelt like what was typed: by pg_trgm's limit for
-- words, six tenths. Of those, too, only some are compared.
-- name: DirectoryByLikeness :many
WITH candidate AS (
    SELECT p.id, p.username, p.display_name, p.bio, p.version, p.created_at, p.search FROM profile AS p
    WHERE @typed::text <% p.search AND p.discoverable AND p.deleted_at IS NULL
    LIMIT @candidates
)
SELECT c.id, c.username, c.display_name, c.bio, c.version, c.created_at
FROM candidate AS c
WHERE c.id <> @caller::uuid
  AND NOT EXISTS (SELECT 1 FROM deletion AS d WHERE d.user_id = c.id)
  AND NOT EXISTS (SELECT 1 FROM standing AS s WHERE s.user_id = c.id AND s.suspended)
ORDER BY word_similarity(@typed::text, c.search) DESC, length(c.search), c.id
LIMIT @page_size;
