package user_test

import "testing"

// columns says of every column what an export does with it. A new one has to be
// decided here.
var columns = map[string]string{
	"profile.id": "profile.json", "profile.username": "profile.json", "profile.display_name": "profile.json",
	"profile.bio": "profile.json", "profile.locale": "profile.json", "profile.discoverable": "profile.json",
	"profile.created_at": "profile.json", "profile.version": "profile.json",
	"profile.account_version": "not: a guard of listeners", "profile.search": "not: made from the names",
	"profile.deleted_at": "not: nobody is left to ask",

	"standing.user_id": "the person", "standing.suspended": "standing.json", "standing.version": "not: a guard of listeners",

	"deletion.user_id": "the person", "deletion.requested_at": "deletion.json", "deletion.due_at": "deletion.json",
	"deletion.request_id": "not: a key of events", "deletion.deleted_at": "not: nobody is left to ask",
	"deletion.told_at": "not: nobody is left to ask",

	"erasure.user_id": "not: nobody is left to ask", "erasure.service": "not: as before",
	"erasure.requested_at": "not: as before", "erasure.done_at": "not: as before",

	"export_run.id": "not: a key of events", "export_run.user_id": "the person", "export_run.started_at": "exports.json",

	"presence.user_id": "the person", "presence.online": "presence.json", "presence.devices": "presence.json",
	"presence.last_seen_at": "presence.json", "presence.invisible": "presence.json", "presence.shown_seen_at": "presence.json",
	"presence.version": "not: a clock", "presence.shown_version": "not: a clock",
}

func TestEveryColumnIsExportedOrDecided(t *testing.T) {
	t.Parallel()
	h, _ := start(t)
	h.ColumnsDecided("user", columns)
}
