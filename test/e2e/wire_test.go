package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	"github.com/parleychat/parley/test/e2e/system"
)

// object is JSON as it comes.
type object map[string]any

// post is what curl would do.
func post(t *testing.T, sys *system.System, procedure, token string, body object) (int, object) {
	t.Helper()
	raw, err := json.Marshal(body)
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base(sys, 0)+procedure, bytes.NewReader(raw))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := web.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	decoded := object{}
	require.NoError(t, json.Unmarshal(answer, &decoded), "%s", answer)
	return res.StatusCode, decoded
}

// plainHTTP: everything can be done with JSON over HTTP and no library.
func plainHTTP(t *testing.T, sys *system.System) {
	ben := register(t, sys, 0)
	name := "curl" + uuid.NewString()[:8]
	code, registered := post(t, sys, "/parley.auth.v1.AuthService/Register", "", object{
		"email": name + "@example.org", "username": name, "password": password,
	})
	require.Equal(t, http.StatusOK, code, "%v", registered)
	tokens, _ := registered["tokens"].(map[string]any)
	token, _ := tokens["accessToken"].(string)
	require.NotEmpty(t, token)

	code, created := post(t, sys, "/parley.messaging.v1.MessagingService/CreateDirectConversation", token, object{"userId": ben.id})
	require.Equal(t, http.StatusOK, code, "%v", created)
	conversation, _ := created["conversation"].(map[string]any)
	message := object{"conversationId": conversation["id"], "clientMessageId": newID(t), "text": "by hand"}
	code, sent := post(t, sys, "/parley.messaging.v1.MessagingService/SendMessage", token, message)
	require.Equal(t, http.StatusOK, code, "%v", sent)
	require.Equal(t, "2", sent["seq"])

	code, refused := post(t, sys, "/parley.messaging.v1.MessagingService/SendMessage", "", message)
	require.Equal(t, http.StatusUnauthorized, code)
	require.Equal(t, "unauthenticated", refused["code"])
	code, refused = post(t, sys, "/parley.messaging.v1.MessagingService/SendMessage", token, object{"conversationId": "no id"})
	require.Equal(t, http.StatusBadRequest, code)
	require.Equal(t, "invalid_argument", refused["code"])
	code, refused = post(t, sys, "/parley.auth.v1.AuthService/Register", "", object{
		"email": name + "2@example.org", "username": name, "password": password,
	})
	require.Equal(t, http.StatusConflict, code)
	require.Contains(t, fmt.Sprint(refused["details"]), "REASON_USERNAME_TAKEN", "the reason stands in the details: %v", refused)
}

// jsonSocket: the socket speaks JSON for people and browsers' tools.
func jsonSocket(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	talk := ada.talkTo(t, ben)
	dialer := websocket.Dialer{Subprotocols: []string{"parley.v1.json"}, HandshakeTimeout: soon}
	ws, res, err := dialer.DialContext(t.Context(), "ws://"+hostOf(sys, 1)+"/v1/ws", nil)
	require.NoError(t, err)
	_ = res.Body.Close()
	t.Cleanup(func() { _ = ws.Close() })
	require.Equal(t, "parley.v1.json", ws.Subprotocol())

	say := func(frame object) { require.NoError(t, ws.WriteJSON(frame)) }
	hear := func() object {
		frame := object{}
		require.NoError(t, ws.ReadJSON(&frame))
		return frame
	}
	say(object{"id": 1, "authenticate": object{"accessToken": ada.tokens.GetAccessToken()}})
	welcome := hear()
	require.Equal(t, ada.id, welcome["welcome"].(map[string]any)["userId"])
	say(object{"id": 2, "call": object{
		"procedure": messagingv1connect.MessagingServiceSendMessageProcedure, "lane": talk,
		"request": object{"conversationId": talk, "clientMessageId": newID(t), "text": "in braces"},
	}})
	// The answer and the push of one's own message come in any order.
	got := object{}
	for range 2 {
		frame := hear()
		for _, kind := range []string{"reply", "push"} {
			if frame[kind] != nil {
				got[kind] = frame[kind]
			}
		}
	}
	require.Equal(t, "2", got["reply"].(map[string]any)["response"].(map[string]any)["seq"], "%v", got)
	entry := got["push"].(map[string]any)["entry"].(map[string]any)
	require.Equal(t, "in braces", entry["message"].(map[string]any)["text"], "%v", got)
}

// grpcCalls: a client of another make, over gRPC, and gRPC-Web.
func grpcCalls(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	conn, err := grpc.NewClient("passthrough:///"+hostOf(sys, 1), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+ada.tokens.GetAccessToken())

	var created messagingv1.CreateDirectConversationResponse
	require.NoError(t, conn.Invoke(ctx, messagingv1connect.MessagingServiceCreateDirectConversationProcedure,
		&messagingv1.CreateDirectConversationRequest{UserId: ben.id}, &created))
	talk := created.GetConversation().GetId()
	var sent messagingv1.SendMessageResponse
	require.NoError(t, conn.Invoke(ctx, messagingv1connect.MessagingServiceSendMessageProcedure,
		&messagingv1.SendMessageRequest{ConversationId: talk, ClientMessageId: newID(t), Text: "by gRPC"}, &sent))
	require.EqualValues(t, 2, sent.GetSeq())

	err = conn.Invoke(ctx, messagingv1connect.MessagingServiceCreateDirectConversationProcedure,
		&messagingv1.CreateDirectConversationRequest{UserId: ada.id}, &created)
	refused := status.Convert(err)
	require.Equal(t, codes.InvalidArgument, refused.Code())
	require.Len(t, refused.Details(), 1)
	info, _ := refused.Details()[0].(*errorv1.ErrorInfo)
	require.Equal(t, errorv1.Reason_REASON_SELF_CONVERSATION, info.GetReason())
	err = conn.Invoke(t.Context(), messagingv1connect.MessagingServiceSyncProcedure, &messagingv1.SyncRequest{}, &messagingv1.SyncResponse{})
	require.Equal(t, codes.Unauthenticated, status.Code(err), "%v", err)

	listed, err := ada.messaging(0, connect.WithGRPCWeb()).ListMessages(t.Context(), &messagingv1.ListMessagesRequest{ConversationId: talk})
	require.NoError(t, err, "gRPC-Web")
	require.Equal(t, "by gRPC", listed.GetEntries()[0].GetMessage().GetText())
}

// internalMethodsAreHidden: what services ask each other cannot be reached from
// outside, over no transport; the public keys can.
func internalMethodsAreHidden(t *testing.T, sys *system.System) {
	ada := register(t, sys, 0)
	code, refused := post(t, sys, authv1connect.AuthServiceBatchGetAccountsProcedure, ada.tokens.GetAccessToken(), object{"ids": []string{ada.id}})
	require.Equal(t, http.StatusNotImplemented, code, "%v", refused)
	for _, option := range []connect.ClientOption{connect.WithProtoJSON(), connect.WithGRPCWeb()} {
		client := authv1connect.NewAuthServiceClient(web, base(sys, 1), option, ada.bearer())
		_, err := client.BatchGetAccounts(t.Context(), &authv1.BatchGetAccountsRequest{Ids: []string{ada.id}})
		require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err), "%v", err)
	}
	conn := ada.socket(t, 0)
	err := conn.Call(t.Context(), authv1connect.AuthServiceBatchGetAccountsProcedure, "",
		&authv1.BatchGetAccountsRequest{Ids: []string{ada.id}}, &authv1.BatchGetAccountsResponse{})
	require.Equal(t, connect.CodeUnimplemented, connect.CodeOf(err), "%v", err)

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base(sys, 0)+"/.well-known/jwks.json", nil)
	require.NoError(t, err)
	res, err := web.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	var keys struct {
		Keys []object `json:"keys"`
	}
	require.NoError(t, json.NewDecoder(res.Body).Decode(&keys))
	require.NotEmpty(t, keys.Keys)
	for _, key := range keys.Keys {
		require.Equal(t, "OKP", key["kty"])
		require.NotContains(t, key, "d", "no private half")
	}
}
