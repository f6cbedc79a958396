package user_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func strangers(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = uuid.Must(uuid.NewV7()).String()
	}
	return ids
}

// What is told to many may not be done as often as a socket has frames.
func TestChangesAreLimited(t *testing.T) {
	t.Parallel()
	h, _ := startWith(t, servicetest.Options{Settings: []string{"PARLEY_USER_UPDATE_LIMIT=3"}})
	anna := named(t, h, "anna", "Anna")
	settings := userv1connect.NewPresenceServiceClient(h.Dial("user", h.User(anna)))
	hide := func(invisible bool) error {
		_, err := settings.UpdatePresenceSettings(t.Context(), &userv1.UpdatePresenceSettingsRequest{
			Settings: &userv1.PresenceSettings{Invisible: invisible},
		})
		return err
	}
	require.NoError(t, hide(true))
	require.NoError(t, hide(false))
	_, err := profilesOf(h, anna).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{Bio: "x", Version: 1, UpdateMask: mask("bio")})
	require.NoError(t, err)
	err = hide(true)
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	_, err = profilesOf(h, anna).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{Bio: "y", Version: 2, UpdateMask: mask("bio")})
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	wait := rpc.InfoOf(err).GetRetryAfter().AsDuration()
	require.Positive(t, wait)
	h.Clock.Advance(wait)
	require.NoError(t, hide(true))
}

// Nobody reads everybody's profile and last seen.
func TestLooksAreLimited(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Settings: []string{
		"PARLEY_USER_LOOK_LIMIT=500", "PARLEY_USER_STRANGER_LIMIT=200",
	}})
	caller := h.User(newID(t))
	presences := userv1connect.NewPresenceServiceClient(h.Dial("user", caller))
	for range 2 {
		_, err := presences.BatchGetPresence(t.Context(), &userv1.BatchGetPresenceRequest{UserIds: strangers(200)})
		require.NoError(t, err)
	}
	_, err := presences.BatchGetPresence(t.Context(), &userv1.BatchGetPresenceRequest{UserIds: strangers(200)})
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)

	people := userv1connect.NewUserServiceClient(h.Dial("user", h.User(newID(t))))
	_, err = people.BatchGetUsers(t.Context(), &userv1.BatchGetUsersRequest{UserIds: strangers(200)})
	require.NoError(t, err)
	asked := auth.calls.Load()
	_, err = people.BatchGetUsers(t.Context(), &userv1.BatchGetUsersRequest{UserIds: strangers(200)})
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	require.Equal(t, asked, auth.calls.Load(), "auth is not asked for ids that nobody has, again and again")
	h.Clock.Advance(time.Minute)
	_, err = people.BatchGetUsers(t.Context(), &userv1.BatchGetUsersRequest{UserIds: strangers(200)})
	require.NoError(t, err)
}
