package auth_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// rows counts the rows of every table that hold a text.
func rows(t *testing.T, h *servicetest.Harness, text string) map[string]int {
	t.Helper()
	names, err := h.DB("auth").Query(t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = 'auth'`)
	require.NoError(t, err)
	var tables []string
	for names.Next() {
		var name string
		require.NoError(t, names.Scan(&name))
		tables = append(tables, name)
	}
	require.NoError(t, names.Err())
	found := map[string]int{}
	for _, name := range tables {
		var n int
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), `SELECT count(*) FROM `+name+` AS r WHERE r::text ILIKE $1`, "%"+text+"%").Scan(&n))
		if n > 0 {
			found[name] = n
		}
	}
	return found
}

func TestForgetPerson(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	req := person("canary")
	req.DeviceName, req.DisplayName = "canary's phone", "Canary Bird"
	ctx := from(t, "203.0.113.77")
	anna, err := client.Register(ctx, req)
	require.NoError(t, err)
	berta := register(t, client, "berta")
	_, err = changeUsername(t, h, anna, "canary2")
	require.NoError(t, err)
	_, err = logIn(from(t, "203.0.113.77"), client, "canary2", "wrong password")
	require.Error(t, err)
	require.NotEmpty(t, rows(t, h, "canary"))
	require.NotEmpty(t, rows(t, h, "203.0.113.77"))

	ev := event.New("user.deleted", anna.GetUserId(), 2, &userv1.UserDeleted{UserId: anna.GetUserId()})
	h.Deliver("user", "auth", ev)
	h.Deliver("user", "auth", ev)
	require.Empty(t, rows(t, h, "canary"))
	require.Empty(t, rows(t, h, "203.0.113.77"))
	require.Len(t, h.Events("auth", "auth.person_forgotten"), 1)
	revoked := h.Events("auth", "session.revoked")
	require.Len(t, revoked, 1)
	require.Equal(t, anna.GetTokens().GetSessionId(), revoked[0].GetKey())

	for _, login := range []string{"canary", "canary2", "canary@example.org"} {
		_, err = logIn(t.Context(), client, login, password)
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
	}
	_, err = refresh(t.Context(), client, anna.GetTokens().GetRefreshToken())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)
	internal := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Service("user", "auth")))
	res, err := internal.BatchGetAccounts(t.Context(), &authv1.BatchGetAccountsRequest{Ids: []string{anna.GetUserId(), berta.GetUserId()}})
	require.NoError(t, err)
	require.Len(t, res.GetAccounts(), 1)
	_, err = logIn(t.Context(), client, "berta", password)
	require.NoError(t, err)
	// The names and the address are free.
	_, err = client.Register(t.Context(), person("canary"))
	require.NoError(t, err)

	// Somebody of whom auth never heard is forgotten as well.
	nobody := uuid.NewString()
	h.Deliver("user", "auth", event.New("user.deleted", nobody, 1, &userv1.UserDeleted{UserId: nobody}))
	require.Len(t, h.Events("auth", "auth.person_forgotten"), 2)
}

// What an admin does at user is in the record of auth, once.
func TestTheRecordTellsOfAdminsElsewhere(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	root := newAdmin(t, h, client, "root")
	gone := uuid.NewString()
	for _, ev := range []*eventv1.Event{
		event.New("user.erasure_viewed", uuid.NewString(), 1, &userv1.UserErasureViewed{UserId: gone, ViewedBy: root.id}),
		event.New("user.erasures_repeated", uuid.NewString(), 1, &userv1.UserErasuresRepeated{RepeatedBy: root.id}),
	} {
		h.Deliver("user", "auth", ev)
		h.Deliver("user", "auth", ev)
	}
	seen, err := root.admin.ListAuditEvents(t.Context(), &authv1.ListAuditEventsRequest{})
	require.NoError(t, err)
	var viewed, repeated int
	for _, ev := range seen.GetEvents() {
		switch ev.GetAction() {
		case "admin.erasure_viewed":
			viewed++
			require.Equal(t, gone, ev.GetUserId())
			require.Equal(t, root.id, ev.GetActorId())
		case "admin.erasures_repeated":
			repeated++
			require.Empty(t, ev.GetUserId())
			require.Equal(t, root.id, ev.GetActorId())
		}
	}
	require.Equal(t, []int{1, 1}, []int{viewed, repeated})
}

// What a person does at user is in the record of auth, once.
func TestTheRecordTellsOfDeletionsAndExports(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	id := register(t, client, "anna").GetUserId()
	for _, ev := range []*eventv1.Event{
		event.New("user.deletion_requested", uuid.NewString(), 1, &userv1.UserDeletionRequested{UserId: id}),
		event.New("user.deletion_cancelled", uuid.NewString(), 2, &userv1.UserDeletionCancelled{UserId: id}),
		event.New("user.data_exported", uuid.NewString(), 1, &userv1.UserDataExported{UserId: id}),
	} {
		h.Deliver("user", "auth", ev)
		h.Deliver("user", "auth", ev)
	}
	var actions []string
	require.NoError(t, h.DB("auth").QueryRow(t.Context(), `SELECT array_agg(action ORDER BY action) FROM audit
		WHERE account_id = $1 AND actor = 'self' AND action LIKE 'account.d%'`, id).Scan(&actions))
	require.Equal(t, []string{"account.data_exported", "account.deletion_cancelled", "account.deletion_requested"}, actions)
}

func TestExportPerson(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	req := person("anna")
	req.DeviceName = "Anna's laptop"
	anna, err := client.Register(from(t, "203.0.113.5"), req)
	require.NoError(t, err)
	register(t, client, "berta")
	_, err = changeUsername(t, h, anna, "annika")
	require.NoError(t, err)

	files := exportOf(t, h, h.Service("user", "auth"), anna.GetUserId())
	var account map[string]any
	require.NoError(t, json.Unmarshal([]byte(files["account.json"]), &account))
	require.Equal(t, "annika", account["username"])
	require.Equal(t, "anna@example.org", account["email"])
	require.Equal(t, "user", account["role"])
	require.Contains(t, files["usernames.ndjson"], `"username":"anna"`)
	require.Equal(t, 1, strings.Count(files["sessions.ndjson"], "\n"))
	require.Contains(t, files["sessions.ndjson"], "Anna's laptop")
	require.Contains(t, files["audit.ndjson"], "203.0.113.5")
	require.Contains(t, files, "identities.ndjson")
	require.Contains(t, files, "pending.ndjson")
	require.Empty(t, files["deeds.ndjson"], "anna is no admin")
	for name, content := range files {
		require.NotContains(t, content, "berta", name)
		for _, secret := range []string{"password_hash", "token_hash", "$2a$", "$2b$"} {
			require.NotContains(t, content, secret, name)
		}
	}
	require.NotContains(t, exportOf(t, h, h.Service("user", "auth"), uuid.NewString()), "account.json")

	for _, caller := range []servicetest.Caller{whois(t, h, anna), h.Service("messaging", "auth"), h.Anonymous()} {
		stream, err := authv1connect.NewPortabilityServiceClient(h.Dial("auth", caller)).
			ExportPerson(t.Context(), &portabilityv1.ExportPersonRequest{UserId: anna.GetUserId()})
		require.NoError(t, err)
		require.False(t, stream.Receive())
		require.Error(t, stream.Err())
		require.NoError(t, stream.Close())
	}
}

// What somebody did as an admin is theirs, whom they did it to is not.
func TestExportHasTheDeedsOfAnAdmin(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	root, berta := newAdmin(t, h, client, "root"), newcomer(t, h, client, "berta")
	_, err := setRole(t, root, berta.id, authv1.Role_ROLE_MODERATOR)
	require.NoError(t, err)
	files := exportOf(t, h, h.Service("user", "auth"), root.id)
	require.Contains(t, files["deeds.ndjson"], `"action":"role.set"`)
	require.NotContains(t, files["deeds.ndjson"], berta.id)
	require.Empty(t, exportOf(t, h, h.Service("user", "auth"), berta.id)["deeds.ndjson"])
}

func exportOf(t *testing.T, h *servicetest.Harness, by servicetest.Caller, user string) map[string]string {
	t.Helper()
	stream, err := authv1connect.NewPortabilityServiceClient(h.Dial("auth", by)).
		ExportPerson(t.Context(), &portabilityv1.ExportPersonRequest{UserId: user})
	require.NoError(t, err)
	files, name := map[string]*bytes.Buffer{}, ""
	for stream.Receive() {
		if file := stream.Msg().GetFile(); file != nil {
			name = file.GetName()
			files[name] = &bytes.Buffer{}
			continue
		}
		files[name].Write(stream.Msg().GetData())
	}
	require.NoError(t, stream.Err())
	require.NoError(t, stream.Close())
	content := map[string]string{}
	for name, text := range files {
		content[name] = text.String()
	}
	return content
}
