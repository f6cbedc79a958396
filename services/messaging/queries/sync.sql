-- Which conversations of each caller changed since its cursor: one query for many
-- callers, all from one snapshot. Every caller gets at least one row.
--
-- A conversation's change is the highest transaction id among its own row and its
-- members' rows; to one who has left, only its own row counts. The next cursor is
-- the snapshot's xmin: whatever this snapshot does not see was written by a
-- transaction with that id or a higher one, however late it commits. A long writing
-- transaction anywhere in the cluster holds xmin back: until it ends, Syncs tell
-- some conversations again, which is harmless.
--
-- Nor does the next cursor pass sync_horizon. An id above it that rolled back may be
-- given out a second time after a crash, and then belong to a message that a cursor
-- beyond it would never ask for.
--
-- A cursor of another cluster, timeline or operator's number, or from beyond this
-- snapshot, says nothing here: that caller starts from the beginning (reset). The
-- timeline is read from the name of the WAL file, which is right as soon as a
-- standby was promoted; the control file tells it only from the next checkpoint on.
--
-- One more id than asked for tells that there is more.
-- name: SyncChanges :many
WITH server AS MATERIALIZED (
    SELECT concat_ws('.',
            (SELECT system_identifier FROM pg_control_system()),
            substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
            @operator_epoch::bigint) AS epoch,
        least(pg_snapshot_xmin(pg_current_snapshot()),
            coalesce((SELECT xid FROM sync_horizon WHERE only_row), '0'::xid8)) AS xmin,
        pg_snapshot_xmax(pg_current_snapshot()) AS xmax
), asked AS (
    SELECT a.*, s.epoch AS server_epoch, s.xmin,
        (a.epoch <> '' AND (a.epoch <> s.epoch OR a.since > s.xmax OR a.next > s.xmax)) AS reset
    FROM (
        SELECT generate_subscripts(@user_ids::uuid[], 1) AS ord,
            unnest(@user_ids::uuid[]) AS user_id,
            unnest(@epochs::text[]) AS epoch,
            unnest(@since::xid8[]) AS since,
            unnest(@next::xid8[]) AS next,
            unnest(@page_xids::xid8[]) AS page_xid,
            unnest(@page_ids::uuid[]) AS page_id,
            unnest(@page_sizes::int[]) AS page_size
    ) AS a
    CROSS JOIN server AS s
), start AS (
    SELECT a.ord, a.user_id, a.reset, a.server_epoch, a.page_size,
        CASE WHEN a.reset THEN '0'::xid8 ELSE a.since END AS since,
        CASE WHEN a.reset OR a.next = '0'::xid8 THEN a.xmin ELSE a.next END AS next,
        CASE WHEN a.reset THEN '0'::xid8 ELSE a.page_xid END AS page_xid,
        a.page_id
    FROM asked AS a
)
SELECT a.ord::int AS ord, a.reset::boolean AS reset, a.server_epoch::text AS epoch,
    a.since::xid8 AS since, a.next::xid8 AS next,
    coalesce(p.id, '00000000-0000-0000-0000-000000000000')::uuid AS id,
    coalesce(p.changed, '0'::xid8)::xid8 AS changed
FROM start AS a
LEFT JOIN LATERAL (
    SELECT c.id, x.changed
    FROM member AS m
    JOIN conversation AS c ON c.id = m.conversation_id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN m.left_seq > 0 THEN m.mark_xid ELSE greatest(c.last_xid, (
            SELECT max(o.mark_xid) FROM member AS o WHERE o.conversation_id = c.id
        )) END AS changed
    ) AS x
    WHERE m.user_id = a.user_id AND x.changed >= a.since AND (x.changed, c.id) > (a.page_xid, a.page_id)
    ORDER BY x.changed, c.id
    LIMIT a.page_size + 1
) AS p ON true
ORDER BY a.ord, p.changed, p.id;
