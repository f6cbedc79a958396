package servicetest

import (
	"github.com/jackc/pgx/v5"
)

// columnsSQL lists the columns of a service's own tables. Those of pkg hold events
// and jobs on their way; a partition is like its table.
const columnsSQL = `
SELECT (c.relname || '.' || a.attname)::text
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relname NOT IN ('outbox', 'outbox_stream', 'inbox', 'job_lease', 'job_run', 'schema_version', 'runtime_version')`

// ColumnsDecided holds that a service has decided, for each column ("table.column")
// of its tables, what an export of a person does with it: so that a new one is not
// forgotten.
func (h *Harness) ColumnsDecided(service string, decided map[string]string) {
	h.t.Helper()
	rows, err := h.DB(service).Query(h.ctx(), columnsSQL)
	if err != nil {
		h.t.Fatalf("read the columns of %s: %v", service, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		h.t.Fatalf("read the columns of %s: %v", service, err)
	}
	found := make(map[string]bool, len(names))
	for _, name := range names {
		found[name] = true
		if decided[name] == "" {
			h.t.Errorf("%s: decide what an export does with it", name)
		}
	}
	for name := range decided {
		if !found[name] {
			h.t.Errorf("%s is gone", name)
		}
	}
}
