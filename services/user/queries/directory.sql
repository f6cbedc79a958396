-- People one of whose names, or a word of them, begins with what was typed. pattern
-- is "% typed%": the space and the letters after it are trigrams of the index.
-- Exact user names first, then those that begin so, then the others.
-- name: DirectoryByPrefix :many
SELECT p.id, p.username, p.display_name, p.bio, p.version, p.created_at
FROM profile AS p
WHERE p.search LIKE @pattern
  AND p.discoverable AND p.deleted_at IS NULL AND p.id <> @caller
  AND NOT EXISTS (SELECT 1 FROM deletion AS d WHERE d.user_id = p.id)
  AND NOT EXISTS (SELECT 1 FROM standing AS s WHERE s.user_id = p.id AND s.suspended)
ORDER BY lower(p.username) = @typed::text DESC, starts_with(lower(p.username), @typed::text) DESC, length(p.search), p.id
LIMIT @page_size;

-- People one of whose words is spelt like what was typed: by pg_trgm's limit for
-- words, six tenths.
-- name: DirectoryByLikeness :many
SELECT p.id, p.username, p.display_name, p.bio, p.version, p.created_at
FROM profile AS p
WHERE @typed::text <% p.search
  AND p.discoverable AND p.deleted_at IS NULL AND p.id <> @caller
  AND NOT EXISTS (SELECT 1 FROM deletion AS d WHERE d.user_id = p.id)
  AND NOT EXISTS (SELECT 1 FROM standing AS s WHERE s.user_id = p.id AND s.suspended)
ORDER BY word_similarity(@typed::text, p.search) DESC, length(p.search), p.id
LIMIT @page_size;
