package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
	accessv1 "github.com/parleychat/parley/proto/gen/parley/access/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
)

// httpClient speaks HTTP/1.1 or h2c to the gateway.
func httpClient(t testing.TB, h2 bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// withToken adds a token to each request.
func withToken(raw string) connect.ClientOption {
	return connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			if raw != "" {
				r.Header().Set("Authorization", "Bearer "+raw)
			}
			return next(ctx, r)
		}
	}))
}

// protocols is every way in which a client may call.
var protocolsOfClients = map[string][]connect.ClientOption{
	"connect": nil, "connect json": {connect.WithProtoJSON()}, "connect get": {connect.WithHTTPGet()},
	"grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()},
}

func sendRequest() *messagingv1.SendMessageRequest {
	return &messagingv1.SendMessageRequest{ConversationId: uuid.NewString(), ClientMessageId: uuid.NewString(), Text: "x"}
}

func TestCallsThroughTheProxy(t *testing.T) {
	t.Parallel()
	for _, h2c := range []bool{false, true} {
		for name, options := range protocolsOfClients {
			t.Run(map[bool]string{false: "in process/", true: "h2c/"}[h2c]+name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, func(s *setup) { s.h2c = h2c })
				client := func(raw string) messagingv1connect.MessagingServiceClient {
					return messagingv1connect.NewMessagingServiceClient(httpClient(t, name == "grpc"), "http://"+w.address,
						append([]connect.ClientOption{withToken(raw)}, options...)...)
				}
				p := newPerson()
				good := client(w.token(p, time.Hour))
				sent, err := good.SendMessage(t.Context(), sendRequest())
				require.NoError(t, err)
				require.Equal(t, int64(7), sent.GetSeq())

				_, err = good.GetConversation(t.Context(), &messagingv1.GetConversationRequest{ConversationId: uuid.NewString()})
				requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
				_, err = good.SendMessage(t.Context(), &messagingv1.SendMessageRequest{})
				requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)

				w.backend.header.Store(nil)
				_, err = client("").SendMessage(t.Context(), sendRequest())
				requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
				_, err = client("nonsense").SendMessage(t.Context(), sendRequest())
				requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_INVALID)
				_, err = client(w.token(p, -time.Hour)).SendMessage(t.Context(), sendRequest())
				requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_EXPIRED)
				w.revocations.Add(p.session, w.clock.Now())
				_, err = good.SendMessage(t.Context(), sendRequest())
				requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED)
				require.Nil(t, w.backend.header.Load(), "nothing was forwarded")
			})
		}
	}
}

func requireReason(t *testing.T, err error, code connect.Code, reason errorv1.Reason) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code, connect.CodeOf(err), err)
	require.Equal(t, reason, rpc.ReasonOf(err), err)
}

func TestUnknownAndInternalMethodsLookAlike(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw := w.token(newPerson(), time.Hour)
	for name, options := range protocolsOfClients {
		for _, procedure := range []string{
			authv1connect.AuthServiceBatchGetAccountsProcedure,
			"/parley.messaging.v1.MessagingService/Nothing", "/parley.nobody.v1.NobodyService/Nothing",
		} {
			client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](httpClient(t, name == "grpc"),
				"http://"+w.address+procedure, append([]connect.ClientOption{withToken(raw)}, options...)...)
			_, err := client.CallUnary(t.Context(), connect.NewRequest(&messagingv1.SyncRequest{}))
			requireReason(t, err, connect.CodeUnimplemented, errorv1.Reason_REASON_METHOD_UNKNOWN)
		}
	}
	response := get(t, w, "/elsewhere", nil)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
}

func get(t *testing.T, w *world, path string, header http.Header) *http.Response {
	t.Helper()
	return do(t, w, http.MethodGet, path, header, nil)
}

func do(t *testing.T, w *world, method, path string, header http.Header, body io.Reader) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.address+path, body)
	require.NoError(t, err)
	maps.Copy(request.Header, header)
	response, err := httpClient(t, false).Do(request)
	require.NoError(t, err)
	data, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	response.Body = io.NopCloser(bytes.NewReader(data))
	return response
}

func TestHeadersOfOursAreNotTakenFromOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	header := http.Header{
		"Authorization": {"Bearer " + w.token(newPerson(), time.Hour)}, "Content-Type": {"application/json"},
		"X-Forwarded-For": {"203.0.113.1"}, "X-Forwarded-Proto": {"gopher"}, "X-Real-Ip": {"203.0.113.1"}, "Forwarded": {"for=x"},
		"Parley-User": {"root"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "Cookie": {"a=b"},
		"Upgrade": {"something"}, "Connection": {"Upgrade"}, "X-Custom": {"stays"},
	}
	response := do(t, w, http.MethodPost, messagingv1connect.MessagingServiceSendMessageProcedure, header,
		strings.NewReader(`{"conversationId":"`+uuid.NewString()+`","clientMessageId":"`+uuid.NewString()+`","text":"x"}`))
	require.Equal(t, http.StatusOK, response.StatusCode)
	got := *w.backend.header.Load()
	require.Equal(t, []string{"127.0.0.1"}, got["X-Forwarded-For"])
	require.Equal(t, "stays", got.Get("X-Custom"))
	for _, name := range []string{"X-Forwarded-Proto", "X-Real-Ip", "Forwarded", "Parley-User", "Cookie"} {
		require.Empty(t, got.Get(name), name)
	}
	require.NotEqual(t, header.Get("Traceparent"), got.Get("Traceparent"))
}

func TestServiceTokensAreNotTakenFromOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	signer, err := token.NewServiceSigner("user", w.key.Private, w.clock)
	require.NoError(t, err)
	raw, err := signer.Token("auth")
	require.NoError(t, err)
	for _, procedure := range []string{
		authv1connect.AuthServiceLogInProcedure, messagingv1connect.MessagingServiceSyncProcedure,
	} {
		response := do(t, w, http.MethodPost, procedure, http.Header{
			"Authorization": {"Bearer " + raw}, "Content-Type": {"application/json"},
		}, strings.NewReader("{}"))
		require.Equal(t, http.StatusUnauthorized, response.StatusCode)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.HTTP.MaxRequestBytes = 2048 })
	header := http.Header{"Authorization": {"Bearer " + w.token(newPerson(), time.Hour)}, "Content-Type": {"application/json"}}
	body := `{"text":"` + strings.Repeat("x", 4096) + `"}`
	for name, reader := range map[string]io.Reader{
		"told": strings.NewReader(body), "in chunks": io.MultiReader(strings.NewReader(body)),
	} {
		response := do(t, w, http.MethodPost, messagingv1connect.MessagingServiceSendMessageProcedure, header, reader)
		require.Equal(t, http.StatusTooManyRequests, response.StatusCode, name) // resource_exhausted
		data, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Contains(t, string(data), "resource_exhausted", name)
	}
}

func TestCallsOfAnAddressAreRateLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Limits.AddressCallRate, s.cfg.Limits.AddressCallBurst = 0.001, 2 })
	client := messagingv1connect.NewMessagingServiceClient(httpClient(t, false), "http://"+w.address,
		withToken(w.token(newPerson(), time.Hour)))
	for range 2 {
		_, err := client.SendMessage(t.Context(), sendRequest())
		require.NoError(t, err)
	}
	_, err := client.SendMessage(t.Context(), sendRequest())
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	require.Positive(t, rpc.InfoOf(err).GetRetryAfter().AsDuration())
}

func TestServiceAway(t *testing.T) {
	t.Parallel()
	for _, h2c := range []bool{false, true} {
		w := newWorld(t, func(s *setup) {
			s.h2c = h2c
			s.methods = withMethod("/parley.away.v1.AwayService/Get", "away", connect.StreamTypeUnary)
		})
		raw := w.token(newPerson(), time.Hour)
		client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](httpClient(t, false),
			"http://"+w.address+"/parley.away.v1.AwayService/Get", withToken(raw))
		_, err := client.CallUnary(t.Context(), connect.NewRequest(&messagingv1.SyncRequest{}))
		requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)

		c := w.connect(newPerson(), SubprotocolJSON)
		c.call(3, "", "/parley.away.v1.AwayService/Get", &messagingv1.SyncRequest{})
		require.Equal(t, errorv1.Reason_REASON_UNAVAILABLE, c.receive().GetReply().GetError().GetInfo().GetReason())
	}
}

// withMethod is the real table with one method more.
func withMethod(procedure, service string, streaming connect.StreamType) map[string]rpc.Method {
	table := map[string]rpc.Method{procedure: {
		Procedure: procedure, Service: service, Access: accessv1.Access_ACCESS_USER, Streaming: streaming,
	}}
	maps.Copy(table, rpc.Methods())
	return table
}

func TestCORS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.Origins = []string{"https://chat.example.org"} })
	preflight := func(origin string) *http.Response {
		return do(t, w, http.MethodOptions, messagingv1connect.MessagingServiceSyncProcedure, http.Header{
			"Origin": {origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"authorization,content-type"},
		}, nil)
	}
	yes := preflight("https://chat.example.org")
	require.Equal(t, http.StatusNoContent, yes.StatusCode)
	require.Equal(t, "https://chat.example.org", yes.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, yes.Header.Get("Access-Control-Allow-Headers"), "Authorization")
	require.Empty(t, yes.Header.Get("Access-Control-Allow-Credentials"))
	no := preflight("https://evil.example.org")
	require.Equal(t, http.StatusForbidden, no.StatusCode)
	require.Empty(t, no.Header.Get("Access-Control-Allow-Origin"))

	// The browser must see errors too.
	answer := do(t, w, http.MethodPost, messagingv1connect.MessagingServiceSyncProcedure, http.Header{
		"Origin": {"https://chat.example.org"}, "Content-Type": {"application/json"},
	}, strings.NewReader("{}"))
	require.Equal(t, http.StatusUnauthorized, answer.StatusCode)
	require.Equal(t, []string{"https://chat.example.org"}, answer.Header["Access-Control-Allow-Origin"])
	require.Equal(t, "Origin", answer.Header.Get("Vary"))
}

func TestKeysPassThrough(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.extra["auth"] = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(rw, r.URL.Path)
		})
	})
	response := get(t, w, JWKSPath, nil)
	data, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, JWKSPath, string(data))
}

const streamProcedure = "/parley.stream.v1.StreamService/Stream"

func TestStreamsThroughTheProxy(t *testing.T) {
	t.Parallel()
	many := connect.NewServerStreamHandler(streamProcedure, func(_ context.Context, _ *connect.Request[messagingv1.SyncRequest],
		out *connect.ServerStream[messagingv1.SyncResponse],
	) error {
		for range 3 {
			if err := out.Send(&messagingv1.SyncResponse{}); err != nil {
				return err
			}
		}
		return rpc.Error(connect.CodeAborted, errorv1.Reason_REASON_OVERLOADED, "enough")
	})
	for _, h2c := range []bool{false, true} {
		w := newWorld(t, func(s *setup) {
			s.h2c = h2c
			s.extra["stream"] = many
			s.methods = withMethod(streamProcedure, "stream", connect.StreamTypeServer)
		})
		for name, options := range protocolsOfClients {
			client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](
				httpClient(t, name == "grpc"), "http://"+w.address+streamProcedure, options...)
			request := connect.NewRequest(&messagingv1.SyncRequest{})
			request.Header().Set("Authorization", "Bearer "+w.token(newPerson(), time.Hour))
			stream, err := client.CallServerStream(t.Context(), request)
			require.NoError(t, err)
			n := 0
			for stream.Receive() {
				n++
			}
			require.Equal(t, 3, n, name)
			requireReason(t, stream.Err(), connect.CodeAborted, errorv1.Reason_REASON_OVERLOADED)
			require.NoError(t, stream.Close())

			_, err = client.CallServerStream(t.Context(), connect.NewRequest(&messagingv1.SyncRequest{}))
			if err == nil { // gRPC tells errors at the end
				continue
			}
			requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
		}
		c := w.connect(newPerson(), SubprotocolProto)
		c.call(1, "", streamProcedure, &messagingv1.SyncRequest{})
		require.Equal(t, errorv1.Reason_REASON_METHOD_UNKNOWN, c.receive().GetReply().GetError().GetInfo().GetReason())
	}
}

func TestBidiStreamsNeedHTTP2(t *testing.T) {
	t.Parallel()
	echo := connect.NewBidiStreamHandler(streamProcedure, func(_ context.Context,
		stream *connect.BidiStream[messagingv1.SyncRequest, messagingv1.SyncResponse],
	) error {
		for {
			if _, err := stream.Receive(); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := stream.Send(&messagingv1.SyncResponse{}); err != nil {
				return err
			}
		}
	})
	w := newWorld(t, func(s *setup) {
		s.h2c = true
		s.extra["stream"] = echo
		s.methods = withMethod(streamProcedure, "stream", connect.StreamTypeBidi)
	})
	raw := "Bearer " + w.token(newPerson(), time.Hour)
	client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](
		httpClient(t, true), "http://"+w.address+streamProcedure, connect.WithGRPC())
	stream := client.CallBidiStream(t.Context())
	stream.RequestHeader().Set("Authorization", raw)
	for range 3 {
		require.NoError(t, stream.Send(&messagingv1.SyncRequest{}))
		_, err := stream.Receive()
		require.NoError(t, err)
	}
	require.NoError(t, stream.CloseRequest())
	_, err := stream.Receive()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, stream.CloseResponse())

	response := do(t, w, http.MethodPost, streamProcedure, http.Header{
		"Authorization": {raw}, "Content-Type": {"application/connect+proto"},
	}, strings.NewReader(""))
	require.Equal(t, http.StatusHTTPVersionNotSupported, response.StatusCode)
}

func TestSlowHeadersAreCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) { s.cfg.HTTP.HeaderTimeout = 100 * time.Millisecond })
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.address)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, err = conn.Write([]byte("GET / HTTP/1.1\r\nHost:"))
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	_, err = io.ReadAll(conn)
	require.NoError(t, err, "the server closes")
}

func TestConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	cfg, err := Defaults()
	require.NoError(t, err)
	cfg.TrustedProxies = []string{"not a network"}
	_, err = New(t.Context(), cfg, Deps{Log: testkit.Logger(t)})
	require.ErrorContains(t, err, "not a network")
}
