package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// A client that begins a stream and reads nothing of it does not hold it for good:
// the gateway breaks it off, and the service hears of that.
func TestAStreamThatNobodyReadsEnds(t *testing.T) {
	t.Parallel()
	for name, protocol2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan error, 1)
			endless := connect.NewServerStreamHandler(streamProcedure, func(_ context.Context,
				_ *connect.Request[messagingv1.SyncRequest], out *connect.ServerStream[messagingv1.SyncResponse],
			) error {
				var err error
				for err == nil {
					err = out.Send(&messagingv1.SyncResponse{NextCursor: strings.Repeat("x", 256<<10)})
				}
				ended <- err
				return err
			})
			w := newWorld(t, func(s *setup) {
				s.cfg.Socket.WriteTimeout = 100 * time.Millisecond
				s.extra["stream"] = endless
				s.methods = withMethod(streamProcedure, "stream", connect.StreamTypeServer)
			})
			client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](
				httpClient(t, protocol2), "http://"+w.address+streamProcedure)
			request := connect.NewRequest(&messagingv1.SyncRequest{})
			request.Header().Set("Authorization", "Bearer "+w.token(newPerson(), time.Hour))
			stream, err := client.CallServerStream(t.Context(), request)
			require.NoError(t, err)
			require.True(t, stream.Receive(), "it has begun")
			select {
			case err := <-ended:
				require.Error(t, err)
			case <-time.After(6 * patience):
				require.Fail(t, "the stream goes on without a reader")
			}
			_ = stream.Close() // it was cut off
		})
	}
}

// One that is only silent stays.
func TestASilentStreamStays(t *testing.T) {
	t.Parallel()
	for name, protocol2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			silence := make(chan struct{})
			slow := connect.NewServerStreamHandler(streamProcedure, func(_ context.Context,
				_ *connect.Request[messagingv1.SyncRequest], out *connect.ServerStream[messagingv1.SyncResponse],
			) error {
				if err := out.Send(&messagingv1.SyncResponse{}); err != nil {
					return err
				}
				<-silence
				return out.Send(&messagingv1.SyncResponse{})
			})
			w := newWorld(t, func(s *setup) {
				s.cfg.Socket.WriteTimeout = 20 * time.Millisecond
				s.extra["stream"] = slow
				s.methods = withMethod(streamProcedure, "stream", connect.StreamTypeServer)
			})
			client := connect.NewClient[messagingv1.SyncRequest, messagingv1.SyncResponse](
				httpClient(t, protocol2), "http://"+w.address+streamProcedure)
			request := connect.NewRequest(&messagingv1.SyncRequest{})
			request.Header().Set("Authorization", "Bearer "+w.token(newPerson(), time.Hour))
			stream, err := client.CallServerStream(t.Context(), request)
			require.NoError(t, err)
			require.True(t, stream.Receive())
			time.AfterFunc(3*stallWrites*20*time.Millisecond, func() { close(silence) })
			require.True(t, stream.Receive(), stream.Err())
			require.False(t, stream.Receive())
			require.NoError(t, stream.Err())
			require.NoError(t, stream.Close())
		})
	}
}
