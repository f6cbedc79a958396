package user_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func profilesOf(h *servicetest.Harness, id uuid.UUID) userv1connect.ProfileServiceClient {
	return userv1connect.NewProfileServiceClient(h.Dial("user", h.User(id)))
}

// about are the events of a type about one person.
func about(h *servicetest.Harness, typ string, id uuid.UUID) []*eventv1.Event {
	var events []*eventv1.Event
	for _, ev := range h.Events("user", typ) {
		if ev.GetKey() == id.String() {
			events = append(events, ev)
		}
	}
	return events
}

func usernameChanged(id uuid.UUID, version int64, username string) *eventv1.Event {
	return event.New("account.username_changed", id.String(), version, &authv1.AccountUsernameChanged{
		AccountId: id.String(), Username: username, DisplayName: "The first", RegisteredAt: timestamppb.New(servicetest.Noon),
	})
}

func mask(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }

func TestUpdateProfile(t *testing.T) {
	t.Parallel()
	h, auth := start(t)

	t.Run("ChangesWhatTheMaskNamesAndTellsIt", func(t *testing.T) {
		t.Parallel()
		anna := newID(t)
		h.Deliver("auth", "user", registered(anna, "anna"))
		client := profilesOf(h, anna)
		res, err := client.UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{
			DisplayName: " A\u0308nna ", Bio: "not named", Locale: "pt_br", Version: 1, UpdateMask: mask("display_name", "locale"),
		})
		require.NoError(t, err)
		require.Equal(t, "Änna", res.GetProfile().GetUser().GetDisplayName())
		require.Equal(t, "pt-BR", res.GetProfile().GetLocale())
		require.Empty(t, res.GetProfile().GetUser().GetBio())
		require.True(t, res.GetProfile().GetDiscoverable())
		require.EqualValues(t, 2, res.GetProfile().GetUser().GetVersion())
		res, err = client.UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{
			Bio: "one\r\ntwo", Version: 2, UpdateMask: mask("bio", "discoverable", "locale"),
		})
		require.NoError(t, err)
		require.Equal(t, "one\ntwo", res.GetProfile().GetUser().GetBio())
		require.Empty(t, res.GetProfile().GetLocale())
		require.False(t, res.GetProfile().GetDiscoverable())

		got, err := client.GetProfile(t.Context(), &userv1.GetProfileRequest{})
		require.NoError(t, err)
		require.Equal(t, res.GetProfile().String(), got.GetProfile().String())
		other, err := clientOf(h, newID(t)).GetUser(t.Context(), &userv1.GetUserRequest{UserId: anna.String()})
		require.NoError(t, err)
		require.Equal(t, res.GetProfile().GetUser().String(), other.GetUser().String())

		events := about(h, "user.updated", anna)
		require.Len(t, events, 2)
		require.EqualValues(t, 2, events[0].GetKeyVersion())
		require.EqualValues(t, 3, events[1].GetKeyVersion())
		payload := &userv1.UserUpdated{}
		require.NoError(t, events[0].GetPayload().UnmarshalTo(payload))
		require.Equal(t, "Änna", payload.GetDisplayName())
		require.Equal(t, "anna", payload.GetUsername())
		require.NotContains(t, events[1].String(), "two", "nobody needs the text")
	})
	t.Run("RefusesAnotherVersion", func(t *testing.T) {
		t.Parallel()
		berta := newID(t)
		auth.knows(berta, "berta")
		client := profilesOf(h, berta)
		change := &userv1.UpdateProfileRequest{DisplayName: "B", Version: 1, UpdateMask: mask("display_name")}
		_, err := client.UpdateProfile(t.Context(), change)
		require.NoError(t, err, "the profile is made on the way")
		change.DisplayName = "C"
		_, err = client.UpdateProfile(t.Context(), change)
		requireReason(t, err, connect.CodeAborted, errorv1.Reason_REASON_VERSION_CONFLICT)
		got, err := client.GetProfile(t.Context(), &userv1.GetProfileRequest{})
		require.NoError(t, err)
		require.Equal(t, "B", got.GetProfile().GetUser().GetDisplayName())
	})
	t.Run("OfManyAtOnceOneCounts", func(t *testing.T) {
		t.Parallel()
		dora := newID(t)
		h.Deliver("auth", "user", registered(dora, "dora"))
		const many = 6
		errs := make(chan error, many)
		for i := range many {
			go func() {
				_, err := profilesOf(h, dora).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{
					DisplayName: strings.Repeat("d", i+1), Version: 1, UpdateMask: mask("display_name"),
				})
				errs <- err
			}()
		}
		done := 0
		for range many {
			if err := <-errs; err == nil {
				done++
			} else {
				requireReason(t, err, connect.CodeAborted, errorv1.Reason_REASON_VERSION_CONFLICT)
			}
		}
		require.Equal(t, 1, done)
		require.Len(t, about(h, "user.updated", dora), 1)
	})
	t.Run("WithoutADifferenceNothingHappens", func(t *testing.T) {
		t.Parallel()
		emil := newID(t)
		h.Deliver("auth", "user", registered(emil, "emil"))
		res, err := profilesOf(h, emil).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{
			DisplayName: "The emil", Discoverable: true, Version: 1, UpdateMask: mask("display_name", "discoverable"),
		})
		require.NoError(t, err)
		require.EqualValues(t, 1, res.GetProfile().GetUser().GetVersion())
		require.Empty(t, about(h, "user.updated", emil))
	})
	t.Run("RefusesWhatBreaksTheRules", func(t *testing.T) {
		t.Parallel()
		fritz := newID(t)
		h.Deliver("auth", "user", registered(fritz, "fritz"))
		for reason, req := range map[errorv1.Reason]*userv1.UpdateProfileRequest{
			errorv1.Reason_REASON_DISPLAY_NAME_INVALID: {DisplayName: "a\u202Eb", Version: 1, UpdateMask: mask("display_name")},
			errorv1.Reason_REASON_BIO_INVALID:          {Bio: strings.Repeat("x", 501), Version: 1, UpdateMask: mask("bio")},
			errorv1.Reason_REASON_LOCALE_INVALID:       {Locale: "klingon?", Version: 1, UpdateMask: mask("locale")},
			errorv1.Reason_REASON_INVALID_ARGUMENT:     {Version: 1, UpdateMask: mask("username")},
		} {
			_, err := profilesOf(h, fritz).UpdateProfile(t.Context(), req)
			requireReason(t, err, connect.CodeInvalidArgument, reason)
		}
		for _, req := range []*userv1.UpdateProfileRequest{
			{DisplayName: "x", Version: 1}, {DisplayName: "x", Version: 1, UpdateMask: mask()}, {DisplayName: "x", UpdateMask: mask("display_name")},
		} {
			_, err := profilesOf(h, fritz).UpdateProfile(t.Context(), req)
			requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
		}
	})
	t.Run("NobodyHasNoProfile", func(t *testing.T) {
		t.Parallel()
		_, err := profilesOf(h, newID(t)).GetProfile(t.Context(), &userv1.GetProfileRequest{})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	})
}

func TestUsernameChanged(t *testing.T) {
	t.Parallel()
	h, _ := start(t)
	get := func(id uuid.UUID) *userv1.User {
		res, err := clientOf(h, id).GetUser(t.Context(), &userv1.GetUserRequest{})
		require.NoError(t, err)
		return res.GetUser()
	}

	t.Run("IsTakenOverOnceAndInAnyOrder", func(t *testing.T) {
		t.Parallel()
		anna := newID(t)
		h.Deliver("auth", "user", registered(anna, "anna"))
		h.Deliver("auth", "user", usernameChanged(anna, 3, "ann3"), usernameChanged(anna, 2, "ann2"), usernameChanged(anna, 3, "ann3"))
		require.Equal(t, "ann3", get(anna).GetUsername())
		require.Equal(t, "The anna", get(anna).GetDisplayName())
		events := about(h, "user.updated", anna)
		require.Len(t, events, 1)
		require.EqualValues(t, 2, events[0].GetKeyVersion())
	})
	t.Run("BeforeTheRegistrationMakesTheProfile", func(t *testing.T) {
		t.Parallel()
		berta := newID(t)
		h.Deliver("auth", "user", usernameChanged(berta, 2, "berta2"), registered(berta, "berta"))
		require.Equal(t, "berta2", get(berta).GetUsername())
		require.Equal(t, "The first", get(berta).GetDisplayName())
		require.Len(t, about(h, "user.created", berta), 1)
		require.Empty(t, about(h, "user.updated", berta))
	})
	t.Run("TakesADisplayNameAlongThatWasNeverChosen", func(t *testing.T) {
		t.Parallel()
		cleo := newID(t)
		h.Deliver("auth", "user", event.New("account.registered", cleo.String(), 1, &authv1.AccountRegistered{
			AccountId: cleo.String(), Username: "cleo", DisplayName: "\u202Ecleo", RegisteredAt: timestamppb.New(servicetest.Noon),
		}))
		require.Equal(t, "cleo", get(cleo).GetDisplayName(), "a name that breaks the rules gives way to the user name")
		h.Deliver("auth", "user", usernameChanged(cleo, 2, "kleo"))
		require.Equal(t, "kleo", get(cleo).GetDisplayName())
	})
}
