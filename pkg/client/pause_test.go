package client

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// A message waits for its next try as long as the server says, and else for a random
// time that grows, but not for longer than somebody would look at it.
func TestResendPause(t *testing.T) {
	t.Parallel()
	away := rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "away")
	var longest time.Duration
	for tries := range 100 {
		for range 100 {
			longest = max(longest, resendPause(away, tries))
		}
	}
	require.Greater(t, longest, resendCap/2)
	require.LessOrEqual(t, longest, resendCap)
	require.Less(t, resendPause(away, 0), backoffBase)
	require.Equal(t, time.Minute, resendPause(rpc.WithRetryAfter(away, time.Minute), 100), "the server knows better")
}
