package gateway

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
)

// counted are the codes under which calls of a procedure were counted, each with
// the sum of their times.
func counted(t *testing.T, reader *sdkmetric.ManualReader, procedure string) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &all))
	codes := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			data, ok := m.Data.(metricdata.Histogram[float64])
			if m.Name != "gateway_rpc_duration" || !ok {
				continue
			}
			for _, p := range data.DataPoints {
				if of, _ := p.Attributes.Value(attribute.Key("procedure")); of.AsString() == procedure {
					code, _ := p.Attributes.Value("code")
					codes[code.AsString()] = p.Sum
				}
			}
		}
	}
	return codes
}

func requireCode(t *testing.T, reader *sdkmetric.ManualReader, procedure, code string) {
	t.Helper()
	// It is counted after the last byte, which the caller may have had before.
	require.Eventually(t, func() bool { _, ok := counted(t, reader, procedure)[code]; return ok }, patience, 5*time.Millisecond,
		"%s is not counted as %s", procedure, code)
	require.Len(t, counted(t, reader, procedure), 1, "and as nothing else")
}

// A call that fails is counted as one, whatever the protocol tells it by.
func TestCallsAreCountedByTheirCode(t *testing.T) {
	t.Parallel()
	names := map[string]map[string]string{
		"ok":        {"connect": "200", "grpc": "ok"},
		"not_found": {"connect": "404", "grpc": "not_found"},
		"away":      {"connect": "503", "grpc": "unavailable"},
	}
	for _, h2c := range []bool{false, true} {
		for name, options := range protocolsOfClients {
			t.Run(map[bool]string{false: "in process/", true: "h2c/"}[h2c]+name, func(t *testing.T) {
				t.Parallel()
				reader := sdkmetric.NewManualReader()
				const away = "/parley.away.v1.AwayService/Get"
				w := newWorld(t, func(s *setup) {
					s.h2c = h2c
					s.meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
					s.methods = withMethod(away, "away", connect.StreamTypeUnary)
				})
				raw := w.token(newPerson(), time.Hour)
				base := append([]connect.ClientOption{withToken(raw)}, options...)
				client := messagingv1connect.NewMessagingServiceClient(httpClient(t, name == "grpc"), "http://"+w.address, base...)
				_, err := client.SendMessage(t.Context(), sendRequest())
				require.NoError(t, err)
				_, err = client.GetConversation(t.Context(), &messagingv1.GetConversationRequest{ConversationId: uuid.NewString()})
				require.Error(t, err)
				lost := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](httpClient(t, name == "grpc"), "http://"+w.address+away, base...)
				_, err = lost.CallUnary(t.Context(), connect.NewRequest(&messagingv1.SyncRequest{}))
				require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "the gateway's own answer")

				way, _, _ := strings.Cut(name, " ")
				way, _, _ = strings.Cut(way, "-")
				requireCode(t, reader, messagingv1connect.MessagingServiceSendMessageProcedure, names["ok"][way])
				requireCode(t, reader, messagingv1connect.MessagingServiceGetConversationProcedure, names["not_found"][way])
				requireCode(t, reader, away, names["away"][way])
			})
		}
	}
}

// A stream tells its code at its end, and how long it lives is no latency.
func TestStreamsAreCountedByTheirCode(t *testing.T) {
	t.Parallel()
	lives := 300 * time.Millisecond
	fails := connect.NewServerStreamHandler(streamProcedure, func(_ context.Context, _ *connect.Request[messagingv1.SyncRequest],
		out *connect.ServerStream[messagingv1.SyncResponse],
	) error {
		if err := out.Send(&messagingv1.SyncResponse{}); err != nil {
			return err
		}
		<-time.After(lives)
		return rpc.Error(connect.CodeAborted, errorv1.Reason_REASON_OVERLOADED, "enough")
	})
	for name, options := range protocolsOfClients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reader := sdkmetric.NewManualReader()
			w := newWorld(t, func(s *setup) {
				s.extra["stream"] = fails
				s.meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
				s.methods = withMethod(streamProcedure, "stream", connect.StreamTypeServer)
			})
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
			require.Equal(t, 1, n)
			require.Equal(t, connect.CodeAborted, connect.CodeOf(stream.Err()))
			require.NoError(t, stream.Close())
			requireCode(t, reader, streamProcedure, "aborted")
			require.Less(t, counted(t, reader, streamProcedure)["aborted"], lives.Seconds())
		})
	}
}

// An answer that the service breaks off has had a good beginning; it counts as what
// its caller got.
func TestABrokenAnswerIsCounted(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	w := newWorld(t, func(s *setup) {
		s.h2c = true
		s.meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		s.methods = withMethod(streamProcedure, "stream", connect.StreamTypeUnary)
		s.extra["stream"] = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"half`))
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler) //nolint:forbidigo // the documented way to break off
		})
	})
	client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](httpClient(t, false), "http://"+w.address+streamProcedure,
		connect.WithProtoJSON(), withToken(w.token(newPerson(), time.Hour)))
	_, err := client.CallUnary(t.Context(), connect.NewRequest(&messagingv1.SyncRequest{}))
	require.Error(t, err)
	requireCode(t, reader, streamProcedure, "unavailable")
}

// logged keeps what a gateway logs.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A panic is one failed request, and one line at the level that is reported.
func TestAPanicIsToldAndAnswered(t *testing.T) {
	t.Parallel()
	var log logged
	reader := sdkmetric.NewManualReader()
	w := newWorld(t, func(s *setup) {
		s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
		s.meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	})
	w.gateway.routes[messagingv1connect.MessagingServiceSyncProcedure].proxy = nil // whoever asks it, panics
	for name, options := range protocolsOfClients {
		client := messagingv1connect.NewMessagingServiceClient(httpClient(t, name == "grpc"), "http://"+w.address,
			append([]connect.ClientOption{withToken(w.token(newPerson(), time.Hour))}, options...)...)
		_, err := client.Sync(t.Context(), &messagingv1.SyncRequest{})
		requireReason(t, err, connect.CodeInternal, errorv1.Reason_REASON_INTERNAL)
	}
	require.Equal(t, len(protocolsOfClients), strings.Count(log.String(), "level=ERROR"), log.String())
	require.Contains(t, log.String(), "panic in the gateway")
	require.Contains(t, log.String(), "proxy.go", "its stack")
	requireCode(t, reader, messagingv1connect.MessagingServiceSyncProcedure, "internal")
}
