package messaging_test

import (
	"testing"

	"github.com/parleychat/parley/pkg/servicetest"
)

// exported says of every column what an export does with it. A new one has to be
// decided here.
var exported = map[string]string{
	"person.id": "the person", "person.version": "not: a guard of listeners", "person.forgotten": "not: nobody is left to ask",
	"person.invisible": "not: a copy of user's, which exports it", "person.invisible_version": "not: a guard of listeners",

	"conversation.id": "conversations.ndjson", "conversation.kind": "conversations.ndjson",
	"conversation.direct_low": "conversations.ndjson, as members", "conversation.direct_high": "conversations.ndjson, as members",
	"conversation.created_at": "conversations.ndjson", "conversation.last_at": "conversations.ndjson",
	"conversation.closed": "conversations.ndjson", "conversation.head_seq": "not: the messages are all there",
	"conversation.head_ordinal": "not: as before", "conversation.last_xid": "not: a clock",
	"conversation.may_send_low": "not: what privacy said of two people, some minutes ago", "conversation.may_send_high": "not: as before",
	"conversation.checked_at": "not: as before", "conversation.permission_version": "not: a clock",
	"conversation.member_version": "not: a clock",

	"member.conversation_id": "conversations.ndjson", "member.user_id": "the person", "member.role": "not: has no meaning yet",
	"member.join_seq": "conversations.ndjson", "member.left_seq": "conversations.ndjson", "member.read_seq": "conversations.ndjson",
	"member.delivered_seq": "conversations.ndjson", "member.read_ordinal": "not: follows from read_seq", "member.mark_xid": "not: a clock",

	"entry.conversation_id": "messages.ndjson", "entry.seq": "messages.ndjson", "entry.created_at": "messages.ndjson",
	"entry.kind": "messages.ndjson", "entry.sender_id": "messages.ndjson", "entry.client_message_id": "messages.ndjson, of own ones",
	"entry.payload": "messages.ndjson, as text", "entry.ordinal": "not: follows from the others",

	"entry_span.conversation_id": "not: an index", "entry_span.from_seq": "not: an index", "entry_span.from_time": "not: an index",

	"send_key.sender_id": "not: seven days of what is in messages.ndjson", "send_key.client_message_id": "not: as before",
	"send_key.conversation_id": "not: as before", "send_key.seq": "not: as before", "send_key.ordinal": "not: as before",
	"send_key.created_at": "not: as before", "send_key.content_hash": "not: as before",

	"sync_horizon.only_row": "not: about nobody", "sync_horizon.xid": "not: about nobody",
}

func TestEveryColumnIsExportedOrDecided(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	w.ColumnsDecided("messaging", exported)
}
