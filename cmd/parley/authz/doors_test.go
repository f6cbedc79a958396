package authz_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/parleychat/parley/pkg/client"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// who makes a call: as an option of a client, and as a bare token for sockets.
type who struct {
	caller servicetest.Caller
	raw    string
}

// door is a way to a method.
type door struct {
	name string
	call func(t testing.TB, w *world, m rpc.Method, by who, request string) string
}

// The doors: a service itself, as its peers reach it; the gateway over HTTP, in each
// protocol that it passes; the gateway over a socket.
var (
	direct = door{"service", func(t testing.TB, w *world, m rpc.Method, by who, request string) string {
		t.Helper()
		httpClient, url, option := w.Dial(m.Service, by.caller)
		return answer(invoke(t, m, request, httpClient, url, option))
	}}
	overHTTP    = gatewayDoor("gateway", connect.WithProtoJSON())
	overGRPC    = gatewayDoor("gateway's gRPC", connect.WithGRPC())
	overGRPCWeb = gatewayDoor("gateway's gRPC-Web", connect.WithGRPCWeb())
	overGET     = gatewayDoor("gateway's GET", connect.WithHTTPGet())

	overSocket = door{"socket", func(t testing.TB, w *world, m rpc.Method, by who, request string) string {
		t.Helper()
		conn, err := w.socket(t, by.raw)
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		err = conn.Call(ctx, m.Procedure, "", message(t, m, request), dynamicpb.NewMessage(m.Output))
		if closed, ok := errors.AsType[*client.CloseError](conn.Err()); ok && err != nil && closed.Reason == "SESSION_REVOKED" {
			return "ok" // the call has ended its own session, whose sockets go before the reply
		}
		return answer(err)
	}}
)

// gatewayDoor is the gateway over HTTP in one protocol; gRPC needs HTTP/2.
func gatewayDoor(name string, protocol connect.ClientOption) door {
	return door{name, func(t testing.TB, w *world, m rpc.Method, by who, request string) string {
		t.Helper()
		_, _, option := w.Dial(m.Service, by.caller)
		options := []connect.ClientOption{option, protocol}
		if noSideEffects(m) {
			options = append(options, connect.WithIdempotency(connect.IdempotencyNoSideEffects))
		}
		httpClient := w.http
		if strings.HasSuffix(name, "gRPC") {
			httpClient = w.h2c
		}
		return answer(invoke(t, m, request, httpClient, "http://"+w.gateway, options...))
	}}
}

// noSideEffects tells whether a method may be called by GET, as its proto says.
func noSideEffects(m rpc.Method) bool {
	name := strings.ReplaceAll(strings.TrimPrefix(m.Procedure, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return false
	}
	options, _ := d.Options().(*descriptorpb.MethodOptions)
	return options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

func (w *world) socket(t testing.TB, raw string) (*client.Conn, error) {
	t.Helper()
	return client.Dial(t.Context(), client.Config{
		URL: "ws://" + w.gateway + "/v1/ws", Token: func(context.Context) (string, error) { return raw, nil },
	})
}

// message reads a request of the table.
func message(t testing.TB, m rpc.Method, request string) *dynamicpb.Message {
	t.Helper()
	msg := dynamicpb.NewMessage(m.Input)
	require.NoError(t, protojson.Unmarshal([]byte(request), msg), "%s: %s", m.Procedure, request)
	return msg
}

// invoke calls a method of which only the descriptor is known.
func invoke(t testing.TB, m rpc.Method, request string, httpClient connect.HTTPClient, url string, options ...connect.ClientOption) error {
	t.Helper()
	return invokeWith(t, m, message(t, m, request), httpClient, url, options...)
}

func invokeWith(t testing.TB, m rpc.Method, request *dynamicpb.Message, httpClient connect.HTTPClient, url string, options ...connect.ClientOption) error {
	t.Helper()
	caller := connect.NewClient[dynamicpb.Message, dynamicpb.Message](httpClient, url+m.Procedure, append(options,
		connect.WithResponseInitializer(func(_ connect.Spec, msg any) error {
			if dynamic, ok := msg.(*dynamicpb.Message); ok {
				*dynamic = *dynamicpb.NewMessage(m.Output)
			}
			return nil
		}))...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	switch m.Streaming {
	case connect.StreamTypeUnary:
		_, err := caller.CallUnary(ctx, connect.NewRequest(request))
		return err
	case connect.StreamTypeServer:
		stream, err := caller.CallServerStream(ctx, connect.NewRequest(request))
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			continue
		}
		return stream.Err()
	default:
		stream := caller.CallBidiStream(ctx)
		defer func() { _ = stream.CloseResponse() }()
		err := errors.Join(stream.Send(request), stream.CloseRequest())
		for err == nil || errors.Is(err, io.EOF) {
			if _, err = stream.Receive(); errors.Is(err, io.EOF) {
				return nil
			}
		}
		return err
	}
}

// short are the answers about access, which stand in nearly every cell.
var short = map[errorv1.Reason]string{
	errorv1.Reason_REASON_TOKEN_MISSING:   "missing",
	errorv1.Reason_REASON_TOKEN_INVALID:   "invalid",
	errorv1.Reason_REASON_TOKEN_EXPIRED:   "expired",
	errorv1.Reason_REASON_SESSION_REVOKED: "revoked",
	errorv1.Reason_REASON_ACCESS_DENIED:   "denied",
	errorv1.Reason_REASON_METHOD_UNKNOWN:  "unknown",
}

// answer is what stands in a cell.
func answer(err error) string {
	if err == nil {
		return "ok"
	}
	reason := rpc.ReasonOf(err)
	if name, ok := short[reason]; ok {
		return name
	}
	if reason == errorv1.Reason_REASON_UNSPECIFIED {
		return rpc.CodeOf(err).String()
	}
	return strings.TrimPrefix(reason.String(), "REASON_")
}
