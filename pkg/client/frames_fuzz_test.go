package client

import (
	"errors"
	"math"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// seedServerFrames are frames of every kind, and some that no server should send.
func seedServerFrames() []*realtimev1.ServerFrame {
	far := &timestamppb.Timestamp{Seconds: math.MaxInt64}
	past := &timestamppb.Timestamp{Seconds: math.MinInt64, Nanos: -1}
	welcome := func(w *realtimev1.Welcome) *realtimev1.ServerFrame {
		return &realtimev1.ServerFrame{Id: 1, Frame: &realtimev1.ServerFrame_Welcome{Welcome: w}}
	}
	failed := func(e *realtimev1.Error) *realtimev1.ServerFrame {
		return &realtimev1.ServerFrame{Id: 1, Frame: &realtimev1.ServerFrame_Reply{Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Error{Error: e}}}}
	}
	push := func(p *realtimev1.Push) *realtimev1.ServerFrame {
		return &realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: p}}
	}
	return []*realtimev1.ServerFrame{
		welcome(&realtimev1.Welcome{IdleInterval: durationpb.New(-time.Second), TokenExpiresAt: far, ServerTime: past}),
		welcome(&realtimev1.Welcome{IdleInterval: &durationpb.Duration{Seconds: math.MaxInt64}, TokenExpiresAt: past, ServerTime: far}),
		failed(&realtimev1.Error{Code: "not_found", Info: &errorv1.ErrorInfo{Reason: errorv1.Reason_REASON_USER_NOT_FOUND}}),
		failed(&realtimev1.Error{Code: "code_0", Info: &errorv1.ErrorInfo{RetryAfter: &durationpb.Duration{Seconds: -1}}}),
		failed(&realtimev1.Error{Code: "nonsense", Info: &errorv1.ErrorInfo{Reason: -7, RetryAfter: &durationpb.Duration{Seconds: math.MaxInt64}}}),
		failed(&realtimev1.Error{Details: []*anypb.Any{{TypeUrl: "no/such.Type", Value: []byte{0xff}}, nil}}),
		push(&realtimev1.Push{}),
		push(&realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: &messagingv1.Entry{ConversationId: "c", Seq: math.MaxInt64}}}),
		push(&realtimev1.Push{Event: &realtimev1.Push_Conversation{Conversation: &messagingv1.Conversation{Id: "c", HeadSeq: math.MaxInt64}}}),
		{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}},
		{Id: 1, Frame: &realtimev1.ServerFrame_Pong{Pong: &realtimev1.Pong{}}},
		{Id: 2},
		{},
	}
}

// FuzzServerFrame holds that no frame of a server breaks a client: an answer goes
// to the one who asked, once; an error has a code; and no time that a server
// tells makes a client wait for good, or not at all.
func FuzzServerFrame(f *testing.F) {
	for _, frame := range seedServerFrames() {
		data, err := proto.Marshal(frame)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		frame := &realtimev1.ServerFrame{}
		if proto.Unmarshal(data, frame) != nil {
			return
		}
		device := NewDevice(DeviceConfig{})
		c := &Conn{open: map[uint32]chan *realtimev1.ServerFrame{}, done: make(chan struct{}), onPush: device.receive}
		answer := c.expect(1)
		for range 2 { // also a second answer, which nobody asked for
			testkit.Bounded(t, 1<<20+128*uint64(len(data)), func() { c.dispatch(frame) })
		}
		started := frame.GetPush() != nil || frame.GetResync() != nil
		require.Equal(t, frame.GetId() == 1 && !started, len(answer) == 1)
		require.LessOrEqual(t, len(device.inbox), 2)

		requireSaneError(t, replyError(frame.GetReply().GetError()))
		require.GreaterOrEqual(t, renewIn(frame.GetWelcome()), time.Second)
		idle := idleOf(frame.GetWelcome())
		require.Positive(t, idle)
		require.Positive(t, spread(idle))
		require.LessOrEqual(t, spread(idle), idle)
	})
}

func requireSaneError(t *testing.T, err *connect.Error) {
	t.Helper()
	require.NotZero(t, err.Code())
	require.LessOrEqual(t, err.Code(), connect.CodeUnauthenticated)
	require.NotNil(t, rpc.InfoOf(err))
	require.GreaterOrEqual(t, retryAfter(err), time.Duration(0))
	require.LessOrEqual(t, retryAfter(err), maxAdvice)
	require.NotEmpty(t, err.Error())
	sessionOver(err)
	retryable(err)
}

// FuzzClose holds that whatever stands in a close frame, the client comes back.
func FuzzClose(f *testing.F) {
	f.Add(4429, `{"reconnect_ms":1500,"resume":true}`)
	f.Add(1012, `{"reconnect_ms":9223372036854775807}`)
	f.Add(1013, `{"reconnect_ms":-5}`)
	f.Add(1013, `{"reconnect_ms":1e3}`)
	f.Add(4401, "SESSION_REVOKED")
	f.Add(0, "{")
	f.Fuzz(func(t *testing.T, code int, reason string) {
		err := closeError(&websocket.CloseError{Code: code, Text: reason})
		closed, ok := errors.AsType[*CloseError](err)
		require.True(t, ok)
		require.Equal(t, code, closed.Code)
		require.Equal(t, reason, closed.Reason)
		require.GreaterOrEqual(t, closed.ReconnectAfter, time.Duration(0))
		require.LessOrEqual(t, closed.ReconnectAfter, maxAdvice)
		require.Equal(t, code == CloseUnauthentic && reason == "SESSION_REVOKED", sessionOver(err))
	})
}
