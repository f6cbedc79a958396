-- Notes a transaction id that its own commit saves. Whoever reads the row knows
-- that it is saved, because a commit is on the disk before anybody sees it.
-- name: HorizonRaise :exec
INSERT INTO sync_horizon (xid) VALUES (pg_current_xact_id())
ON CONFLICT (only_row) DO UPDATE SET xid = greatest(sync_horizon.xid, excluded.xid);
