package e2e_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/test/e2e/system"
)

// TestPeopleDecideHowTheyAreSeen: somebody changes the name, is found by it, goes
// invisible before the eyes of a friend, and takes back the wish to be deleted, all
// of it through gateways.
func TestPeopleDecideHowTheyAreSeen(t *testing.T) {
	t.Parallel()
	const online, offline = realtimev1.PresenceState_PRESENCE_STATE_ONLINE, realtimev1.PresenceState_PRESENCE_STATE_OFFLINE
	sys := system.Start(t, system.OneProcess, system.Options{Env: []string{"PARLEY_USER_DELETION_GRACE=1h"}})
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	talk := ada.talkTo(t, ben)
	device, _ := ada.present(t, 0)
	screen, _ := ben.present(t, 0)
	screen.Watch(ada.id)
	screen.untilShows(t, ada.id, online)

	t.Log("a name, and who looks for it")
	profiles := userv1connect.NewProfileServiceClient(web, base(sys, 0), ada.bearer())
	name := "Zephyrine " + ada.username[:8]
	update := &userv1.UpdateProfileRequest{DisplayName: name, Version: 1, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}}}
	_, err := profiles.UpdateProfile(t.Context(), update)
	require.NoError(t, err)
	_, err = profiles.UpdateProfile(t.Context(), update)
	require.Equal(t, errorv1.Reason_REASON_VERSION_CONFLICT, rpc.ReasonOf(err), "%v", err)
	directory := userv1connect.NewDirectoryServiceClient(web, base(sys, 1), ben.bearer())
	found, err := directory.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: "zephyrine"})
	require.NoError(t, err)
	require.Len(t, found.GetUsers(), 1)
	require.Equal(t, ada.id, found.GetUsers()[0].GetId())

	t.Log("invisible: offline before the eyes of the friend, who does not see the typing either")
	presences := userv1connect.NewPresenceServiceClient(web, base(sys, 0), ada.bearer())
	hide := func(invisible bool) {
		_, err := presences.UpdatePresenceSettings(t.Context(), &userv1.UpdatePresenceSettingsRequest{
			Settings: &userv1.PresenceSettings{Invisible: invisible},
		})
		require.NoError(t, err)
	}
	hide(true)
	screen.untilShows(t, ada.id, offline)
	hide(false)
	screen.untilShows(t, ada.id, online)
	require.Eventually(t, func() bool { // messaging has heard of it
		_ = device.SetTyping(t.Context(), talk, true) // limited
		return screen.sawTyping(ada.id)
	}, soon, 500*time.Millisecond, "seen to write")

	t.Log("a deletion, taken back")
	deletions := userv1connect.NewDeletionServiceClient(web, base(sys, 0), ada.bearer())
	_, err = deletions.RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	require.NoError(t, err)
	found, err = directory.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: "zephyrine"})
	require.NoError(t, err)
	require.Empty(t, found.GetUsers(), "nobody finds who is leaving")
	_, err = deletions.CancelDeletion(t.Context(), &userv1.CancelDeletionRequest{})
	require.NoError(t, err)
	found, err = directory.SearchUsers(t.Context(), &userv1.SearchUsersRequest{Query: "zephyrine"})
	require.NoError(t, err)
	require.Len(t, found.GetUsers(), 1)
}

func (v *viewer) sawTyping(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, saw := v.typing[id]
	return saw
}
