package user_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/services/user"
)

// shown is the display name that a reader is told by one replica.
func shown(t *testing.T, h *servicetest.Harness, in *servicetest.Instance, reader, of uuid.UUID) string {
	t.Helper()
	client := userv1connect.NewUserServiceClient(h.DialInstance(in, h.User(reader)))
	res, err := client.BatchGetUsers(t.Context(), &userv1.BatchGetUsersRequest{UserIds: []string{of.String()}})
	require.NoError(t, err)
	require.Len(t, res.GetUsers(), 1)
	return res.GetUsers()[0].GetDisplayName()
}

// renameTo changes the display name through one replica and returns the version.
func renameTo(t *testing.T, h *servicetest.Harness, in *servicetest.Instance, id uuid.UUID, name string, version int64) int64 {
	t.Helper()
	client := userv1connect.NewProfileServiceClient(h.DialInstance(in, h.User(id)))
	res, err := client.UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{
		Version: version, DisplayName: name, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
	})
	require.NoError(t, err)
	return res.GetProfile().GetUser().GetVersion()
}

func TestCachedProfiles(t *testing.T) {
	t.Parallel()
	t.Run("AChangeShowsAtOnceAtEveryReplica", func(t *testing.T) {
		t.Parallel()
		h, _ := start(t)
		one, two := h.Instances("user")[0], h.Add(user.Definition())
		anna, berta := newID(t), newID(t)
		h.Deliver("auth", "user", registered(anna, "anna"), registered(berta, "berta"))
		version := int64(1)
		for _, name := range []string{"Anna A", "Anna B", "Anna C", "Anna D"} {
			_ = shown(t, h, one, berta, anna) // fills the cache
			version = renameTo(t, h, one, anna, name, version)
			require.Equal(t, name, shown(t, h, two, berta, anna))
			require.Equal(t, name, shown(t, h, one, berta, anna))
		}
	})
	t.Run("ReadsDoNotNeedTheTable", func(t *testing.T) {
		t.Parallel()
		h, _ := start(t)
		one := h.Instances("user")[0]
		anna := newID(t)
		h.Deliver("auth", "user", registered(anna, "anna"))
		require.Equal(t, "The anna", shown(t, h, one, anna, anna))
		_, err := h.DB("user").Exec(t.Context(), `UPDATE profile SET display_name = 'Behind its back' WHERE id = $1`, anna)
		require.NoError(t, err)
		require.Equal(t, "The anna", shown(t, h, one, anna, anna), "nobody has told of it")
		h.Deliver("user", "user/hot.user.updated", event.New("user.updated", anna.String(), 2, &userv1.UserUpdated{UserId: anna.String()}))
		require.Equal(t, "Behind its back", shown(t, h, one, anna, anna), "the event has")
		_, err = h.DB("user").Exec(t.Context(), `UPDATE profile SET deleted_at = $2 WHERE id = $1`, anna, servicetest.Noon)
		require.NoError(t, err)
		h.Deliver("user", "user/hot.user.deleted", event.New("user.deleted", anna.String(), 3, &userv1.UserDeleted{UserId: anna.String()}))
		require.Empty(t, shown(t, h, one, anna, anna))
	})
	t.Run("WithoutRedisEverythingComesFromTheTable", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateRedis(t)
		h, _ := startWith(t, servicetest.Options{RedisURL: server.URL})
		one := h.Instances("user")[0]
		anna := newID(t)
		h.Deliver("auth", "user", registered(anna, "anna"))
		require.Equal(t, "The anna", shown(t, h, one, anna, anna))
		server.Kill9()
		version := renameTo(t, h, one, anna, "Anna", 1)
		require.Equal(t, "Anna", shown(t, h, one, anna, anna))
		server.Restart()
		renameTo(t, h, one, anna, "Anna again", version)
		require.Eventually(t, func() bool { return shown(t, h, one, anna, anna) == "Anna again" }, 20*time.Second, 10*time.Millisecond,
			"the event waits for Redis")
	})
}
