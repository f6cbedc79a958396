package gateway

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
)

// TestReplicaWithAWrongClock: a replica that refuses a good token is the one to be
// doubted. Nobody is told to log out.
func TestReplicaWithAWrongClock(t *testing.T) {
	t.Parallel()
	for _, refusal := range []error{token.ErrInvalid, token.ErrExpired} {
		for _, h2c := range []bool{false, true} {
			// wrong is how many calls get to the replica with the wrong clock.
			var wrong atomic.Int64
			w := newWorld(t, func(s *setup) {
				s.h2c = h2c
				s.backend.send = func(context.Context, *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
					if wrong.Add(-1) >= 0 {
						return nil, rpc.TokenError(refusal)
					}
					return &messagingv1.SendMessageResponse{Seq: 8}, nil
				}
			})
			c := w.connect(newPerson(), SubprotocolProto)
			wrong.Store(1)
			c.sendMessage(2, "", "x")
			require.Nil(t, c.receive().GetReply().GetError(), "the other replica did it")
			wrong.Store(disputeTries)
			c.sendMessage(3, "", "x")
			require.Equal(t, errorv1.Reason_REASON_UNAVAILABLE, c.receive().GetReply().GetError().GetInfo().GetReason())

			client := messagingv1connect.NewMessagingServiceClient(httpClient(t, false), "http://"+w.address, withToken(w.token(newPerson(), time.Hour)))
			wrong.Store(1)
			_, err := client.SendMessage(t.Context(), sendRequest())
			requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
			_, err = client.SendMessage(t.Context(), sendRequest())
			require.NoError(t, err)
		}
	}
}

// TestEndedSessionIsBelieved: that a session was ended is no matter of clocks.
func TestEndedSessionIsBelieved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.backend.send = func(context.Context, *messagingv1.SendMessageRequest) (*messagingv1.SendMessageResponse, error) {
			return nil, rpc.TokenError(token.ErrRevoked)
		}
	})
	c := w.connect(newPerson(), SubprotocolProto)
	c.sendMessage(2, "", "x")
	require.Equal(t, errorv1.Reason_REASON_SESSION_REVOKED, c.receive().GetReply().GetError().GetInfo().GetReason())
	client := messagingv1connect.NewMessagingServiceClient(httpClient(t, false), "http://"+w.address, withToken(w.token(newPerson(), time.Hour)))
	_, err := client.SendMessage(t.Context(), sendRequest())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED)
}
