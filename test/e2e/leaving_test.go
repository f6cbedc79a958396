package e2e_test

import (
	"archive/zip"
	"bytes"
	"io"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/test/e2e/system"
)

// export downloads the archive of somebody's data, over HTTP through a gateway.
func (p *person) export(t *testing.T, gateway int) (map[string]string, error) {
	t.Helper()
	ctx, call := connect.NewClientContext(t.Context())
	raw, err := p.token(ctx)
	require.NoError(t, err)
	call.RequestHeader().Set("Authorization", "Bearer "+raw)
	stream, err := userv1connect.NewExportServiceClient(web, base(p.sys, gateway)).ExportData(ctx, &userv1.ExportDataRequest{})
	require.NoError(t, err)
	var archive bytes.Buffer
	for stream.Receive() {
		archive.Write(stream.Msg().GetData())
	}
	require.NoError(t, stream.Close())
	if stream.Err() != nil {
		return nil, stream.Err()
	}
	reader, err := zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
	require.NoError(t, err)
	files := map[string]string{}
	for _, f := range reader.File {
		content, err := f.Open()
		require.NoError(t, err)
		text, err := io.ReadAll(content)
		require.NoError(t, err)
		files[f.Name] = string(text)
	}
	return files, nil
}

// dataIsExported: what all services store about somebody comes as one archive, as
// often as the limit allows.
func dataIsExported(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	talk := ada.talkTo(t, ben)
	_, err := ada.messaging(0).SendMessage(t.Context(), &messagingv1.SendMessageRequest{
		ConversationId: talk, ClientMessageId: newID(t), Text: "to be found in the archive",
	})
	require.NoError(t, err)
	for n := range 5 {
		files, err := ada.export(t, n)
		require.NoError(t, err)
		require.Contains(t, files["auth/account.json"], ada.username+"@example.org")
		require.Contains(t, files["user/profile.json"], ada.username)
		require.Contains(t, files["messaging/messages.ndjson"], "to be found in the archive")
		require.Contains(t, files["manifest.json"], `"messaging/messages.ndjson"`)
		for name, content := range files {
			require.NotContains(t, content, ben.username, name)
		}
	}
	_, err = ada.export(t, 0)
	require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err), "%v", err)
}

// accountIsDeleted: after the grace period everybody has forgotten the person, whose
// sockets close; what it wrote stays with the other.
func accountIsDeleted(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	talk := ada.talkTo(t, ben)
	_, err := ada.messaging(0).SendMessage(t.Context(), &messagingv1.SendMessageRequest{
		ConversationId: talk, ClientMessageId: newID(t), Text: "farewell",
	})
	require.NoError(t, err)
	conn := ada.socket(t, 1)
	deletions := userv1connect.NewDeletionServiceClient(web, base(sys, 0), ada.bearer())
	_, err = deletions.RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	require.NoError(t, err)

	requireRevoked(t, conn, soon)
	users := userv1connect.NewUserServiceClient(web, base(sys, 1), ben.bearer())
	require.Eventually(t, func() bool {
		sender, err := users.GetUser(t.Context(), &userv1.GetUserRequest{UserId: ada.id})
		return err == nil && sender.GetUser().GetDeleted() && sender.GetUser().GetUsername() == ""
	}, soon, poll, "the profile is empty")
	require.Eventually(t, func() bool {
		res, err := ben.messaging(0).GetConversation(t.Context(), &messagingv1.GetConversationRequest{ConversationId: talk})
		return err == nil && res.GetConversation().GetClosed()
	}, soon, poll, "the conversation is closed")
	log, err := ben.messaging(1).ListEvents(t.Context(), &messagingv1.ListEventsRequest{ConversationId: talk})
	require.NoError(t, err)
	require.Len(t, log.GetEntries(), 2)
	require.Equal(t, "farewell", log.GetEntries()[1].GetMessage().GetText())
	require.Equal(t, ada.id, log.GetEntries()[1].GetSenderId())
	_, err = authAt(sys, 0).LogIn(t.Context(), &authv1.LogInRequest{Login: ada.username, Password: password})
	require.Equal(t, errorv1.Reason_REASON_CREDENTIALS_INVALID, rpc.ReasonOf(err), "%v", err)
	again, err := authAt(sys, 1).Register(t.Context(), &authv1.RegisterRequest{
		Email: ada.username + "@example.org", Username: ada.username, Password: password,
	})
	require.NoError(t, err, "name and address are free")
	require.NotEqual(t, ada.id, again.GetUserId())
}
