package service_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

const (
	eventually = 15 * time.Second
	tick       = 5 * time.Millisecond
)

// The order: not ready, the running call finishes, the listeners stop, workers
// write what they hold, the relay ends, the pool closes.
func TestShutdownLosesNothing(t *testing.T) {
	t.Parallel()
	for name, opts := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, release := make(chan struct{}), make(chan struct{})
			e := &example{hold: func(ctx context.Context) {
				close(entered)
				select {
				case <-release:
				case <-ctx.Done():
				}
			}}
			h := servicetest.Start(t, opts, e.definition())
			in := h.Instances("user")[0]
			client := userv1connect.NewUserServiceClient(h.Dial("user", h.User(uuid.New())))

			answered := make(chan error, 1)
			go func() {
				_, err := client.BatchGetUsers(context.WithoutCancel(t.Context()), &userv1.BatchGetUsersRequest{UserIds: []string{uuid.NewString()}})
				answered <- err
			}()
			<-entered

			stopped := make(chan error, 1)
			go func() { stopped <- in.Stop() }()
			require.Eventually(t, func() bool { return in.Admin.Status(t.Context()).Why == "draining" }, eventually, tick,
				"readiness goes first")
			// New calls are refused while the old one goes on.
			require.Eventually(t, func() bool {
				_, err := client.GetUser(t.Context(), &userv1.GetUserRequest{})
				return connect.CodeOf(err) == connect.CodeUnavailable
			}, eventually, tick, "the intake ends")
			require.Empty(t, e.journal(), "the worker lives as long as a call does")

			close(release)
			require.NoError(t, <-answered)
			require.NoError(t, <-stopped)
			require.Equal(t, []string{"rpc ended", "worker told to stop", "worker ended"}, e.journal())
			require.Error(t, e.rt.DB.Ping(t.Context()), "the pool is closed")

			// What the worker wrote last is in the table, or published already.
			var rows int
			require.NoError(t, h.DB("user").QueryRow(t.Context(), "SELECT count(*) FROM outbox").Scan(&rows))
			require.Equal(t, 1, rows)
		})
	}
}

// What a stopped replica could not publish is published by the next one.
func TestTheNextReplicaPublishesWhatIsLeft(t *testing.T) {
	t.Parallel()
	def := (&example{}).definition()
	h := servicetest.Start(t, servicetest.Options{}, def)
	require.NoError(t, h.Instances("user")[0].Stop())
	h.Add((&example{}).definition())
	// The relay leaves young rows to whoever committed them.
	h.Clock.Advance(time.Minute)
	require.Len(t, h.Events("user", "user.updated"), 1)
}
