package client_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

func TestCallAndPush(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.refuse = func(procedure string, _ int) *realtimev1.Error {
		if procedure == messagingv1connect.MessagingServiceMarkReadProcedure {
			return refusal(connect.CodePermissionDenied, errorv1.Reason_REASON_NOT_A_MEMBER)
		}
		return nil
	}
	pushes := make(chan *realtimev1.Push, 8)
	conn := dial(t, g, func(p *realtimev1.Push) { pushes <- p })
	require.Equal(t, "ada", conn.Welcome().GetUserId())
	require.NoError(t, conn.Ping(t.Context()))
	require.Equal(t, []string{"a token"}, g.asked(&g.tokens))

	var sent messagingv1.SendMessageResponse
	require.NoError(t, conn.Call(t.Context(), messagingv1connect.MessagingServiceSendMessageProcedure, "lane",
		&messagingv1.SendMessageRequest{ClientMessageId: "m"}, &sent))
	require.EqualValues(t, 1, sent.GetSeq())
	err := conn.Call(t.Context(), messagingv1connect.MessagingServiceMarkReadProcedure, "",
		&messagingv1.MarkReadRequest{}, &messagingv1.MarkReadResponse{})
	require.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err))
	require.Equal(t, errorv1.Reason_REASON_NOT_A_MEMBER, rpc.ReasonOf(err))

	g.push(g.write("c"))
	require.EqualValues(t, 1, (<-pushes).GetEntry().GetSeq())
	g.each(func(s *socket) {
		s.send(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}})
	})
	require.Nil(t, <-pushes, "Resync")
}

func TestBeginKeepsOrder(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	conn := dial(t, g, nil)
	want := []string{"a", "b", "c", "d"}
	waits := make([]*client.Pending, 0, len(want))
	for _, id := range want {
		p, err := conn.Begin(t.Context(), messagingv1connect.MessagingServiceSendMessageProcedure, "lane", &messagingv1.SendMessageRequest{ClientMessageId: id})
		require.NoError(t, err)
		waits = append(waits, p)
	}
	for i, wait := range slices.Backward(waits) { // answers find their call in any order
		var res messagingv1.SendMessageResponse
		require.NoError(t, wait.Wait(t.Context(), &res))
		require.EqualValues(t, i+1, res.GetSeq())
	}
	require.Equal(t, want, g.asked(&g.sends))
}

func TestClosedByTheServer(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	conn := dial(t, g, nil)
	g.close(websocket.CloseServiceRestart, `{"reconnect_ms":1500,"resume":true}`)
	<-conn.Done()
	closed := &client.CloseError{}
	require.ErrorAs(t, conn.Err(), &closed)
	require.Equal(t, websocket.CloseServiceRestart, closed.Code)
	require.Equal(t, 1500*time.Millisecond, closed.ReconnectAfter)
	err := conn.Ping(t.Context())
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "a call on it has an open outcome: %v", err)
}

func TestRefusedUpgrade(t *testing.T) {
	t.Parallel()
	for status, code := range map[int]connect.Code{
		http.StatusUnauthorized: connect.CodeUnauthenticated, http.StatusForbidden: connect.CodePermissionDenied,
		http.StatusTooManyRequests: connect.CodeResourceExhausted, http.StatusServiceUnavailable: connect.CodeUnavailable,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		t.Cleanup(server.Close)
		_, err := client.Dial(t.Context(), client.Config{URL: "ws" + strings.TrimPrefix(server.URL, "http"), Token: token})
		require.Equal(t, code, connect.CodeOf(err), "%v", err)
	}
}
