-- Stores what privacy answered, after batch/conversations.sql has locked the same
-- rows in order. An answer counts only while nobody has marked the state stale
-- since it was asked for: whoever does so raises permission_version.
-- $1 conversation ids, $2 permission versions when asked, $3 may the lower person
-- write to the higher, $4 the other way round: aligned. $5 the clock when asked.
UPDATE conversation AS c
SET may_send_low = a.low, may_send_high = a.high, checked_at = $5
FROM unnest($1::uuid[], $2::bigint[], $3::boolean[], $4::boolean[]) AS a (id, version, low, high)
WHERE c.id = a.id AND c.permission_version = a.version
