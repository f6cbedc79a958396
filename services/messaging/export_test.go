package messaging_test

import (
	"bufio"
	"encoding/json"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
)

// exportOf returns the lines of each file.
func exportOf(t *testing.T, w *world, id uuid.UUID) map[string][]map[string]any {
	t.Helper()
	client := messagingv1connect.NewPortabilityServiceClient(w.Dial("messaging", w.Service("user", "messaging")))
	stream, err := client.ExportPerson(t.Context(), &portabilityv1.ExportPersonRequest{UserId: id.String()})
	require.NoError(t, err)
	content, name := map[string]*strings.Builder{}, ""
	for stream.Receive() {
		if file := stream.Msg().GetFile(); file != nil {
			name = file.GetName()
			content[name] = &strings.Builder{}
			continue
		}
		content[name].Write(stream.Msg().GetData())
	}
	require.NoError(t, stream.Err())
	require.NoError(t, stream.Close())
	files := map[string][]map[string]any{}
	for name, text := range content {
		files[name] = []map[string]any{}
		lines := bufio.NewScanner(strings.NewReader(text.String()))
		for lines.Scan() {
			var line map[string]any
			require.NoError(t, json.Unmarshal(lines.Bytes(), &line))
			files[name] = append(files[name], line)
		}
	}
	return files
}

func TestExportPerson(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	a, b, conversation := w.friends()
	c := w.person()
	other := b.talk(c)
	b.say(other, "not for a")
	const many = 250 // more than a page
	for range many {
		a.say(conversation, "mine")
	}
	b.say(conversation, "theirs")

	files := exportOf(t, w, a.id)
	require.Len(t, files["conversations.ndjson"], 1)
	require.Equal(t, conversation, files["conversations.ndjson"][0]["id"])
	require.Equal(t, "direct", files["conversations.ndjson"][0]["kind"])
	require.ElementsMatch(t, []any{a.id.String(), b.id.String()}, files["conversations.ndjson"][0]["member_ids"])
	entries := files["messages.ndjson"]
	require.Len(t, entries, many+2)
	require.Equal(t, "started", entries[0]["kind"])
	for i, e := range entries {
		require.EqualValues(t, i+1, e["seq"])
	}
	require.Equal(t, "mine", entries[many]["text"])
	require.NotEmpty(t, entries[many]["client_message_id"])
	require.Equal(t, "theirs", entries[many+1]["text"])
	require.NotContains(t, entries[many+1], "client_message_id", "the other person's device made it")

	empty := exportOf(t, w, uuid.New())
	require.Len(t, empty, 2)
	require.Empty(t, empty["messages.ndjson"])

	for _, caller := range []servicetest.Caller{a.caller, w.Service("auth", "messaging"), w.Anonymous()} {
		stream, err := messagingv1connect.NewPortabilityServiceClient(w.Dial("messaging", caller)).
			ExportPerson(t.Context(), &portabilityv1.ExportPersonRequest{UserId: a.id.String()})
		require.NoError(t, err)
		require.False(t, stream.Receive())
		require.Error(t, stream.Err())
		require.Contains(t, []connect.Code{connect.CodePermissionDenied, connect.CodeUnauthenticated}, connect.CodeOf(stream.Err()))
		require.NoError(t, stream.Close())
	}
}
