package user_test

import (
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// deleteNow has somebody deleted, and returns when user itself has forgotten them.
func deleteNow(t *testing.T, h *servicetest.Harness, auth *fakeAuth, id uuid.UUID) {
	t.Helper()
	leave(t, h, auth, id)
	h.Clock.Advance(grace + time.Minute)
	require.Eventually(t, func() bool { return len(done(ledger(t, h, id))) == 1 }, 30*time.Second, 50*time.Millisecond, "user reports")
}

// A service that was away for longer than the stream keeps events hears of the
// deletion all the same.
func TestOpenErasuresAreToldAgain(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: deployment})
	anna := named(t, h, "anna", "Anna")
	deleteNow(t, h, auth, anna)
	h.Deliver("auth", "user", forgotten("auth", anna))
	first := about(h, "user.deleted", anna)
	require.Len(t, first, 1)

	h.Clock.Advance(24*time.Hour + 11*time.Minute)
	require.Eventually(t, func() bool { return len(about(h, "user.deleted", anna)) == 2 }, 30*time.Second, 50*time.Millisecond, "told again")
	again := about(h, "user.deleted", anna)[1]
	require.NotEqual(t, first[0].GetId(), again.GetId(), "or listeners would take it for the same")
	require.Equal(t, first[0].GetKeyVersion(), again.GetKeyVersion())
	payload, before := &userv1.UserDeleted{}, &userv1.UserDeleted{}
	require.NoError(t, again.GetPayload().UnmarshalTo(payload))
	require.NoError(t, first[0].GetPayload().UnmarshalTo(before))
	require.Equal(t, before.String(), payload.String())
	require.Eventually(t, func() bool { return len(about(h, "user.person_forgotten", anna)) == 2 }, 30*time.Second, 50*time.Millisecond,
		"who has forgotten finds nothing, and reports")

	h.Deliver("messaging", "user", forgotten("messaging", anna))
	h.Clock.Advance(25 * time.Hour)
	require.Equal(t, []string{"auth", "messaging", "user"}, done(ledger(t, h, anna)))
	h.Clock.Advance(25 * time.Hour)
	berta := named(t, h, "berta", "Berta")
	deleteNow(t, h, auth, berta) // after which the jobs have run
	require.Len(t, about(h, "user.deleted", anna), 2, "nobody is missing any more")
}

// After the restore of a backup everybody is forgotten again who was deleted since.
func TestRepeatErasures(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: []string{"user"}})
	early, late := named(t, h, "early", "Early"), named(t, h, "late", "Late")
	deleteNow(t, h, auth, early)
	h.Clock.Advance(time.Hour)
	backup := h.Clock.Now()
	deleteNow(t, h, auth, late)
	moderator := deletionsBy(h, h.UserWithRole(newID(t), identity.RoleModerator))
	request := &userv1.RepeatErasuresRequest{DeletedSince: timestamppb.New(backup)}
	_, err := moderator.RepeatErasures(t.Context(), request)
	requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED)

	admin := h.UserWithRole(newID(t), identity.RoleAdmin)
	_, err = deletionsBy(h, admin).RepeatErasures(t.Context(), &userv1.RepeatErasuresRequest{})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	res, err := deletionsBy(h, admin).RepeatErasures(t.Context(), request)
	require.NoError(t, err)
	require.EqualValues(t, 1, res.GetPeople())
	require.Empty(t, done(ledger(t, h, late)), "open again")
	require.Equal(t, []string{"user"}, done(ledger(t, h, early)), "not concerned")
	h.Clock.Advance(11 * time.Minute)
	require.Eventually(t, func() bool { return len(done(ledger(t, h, late))) == 1 }, 30*time.Second, 50*time.Millisecond, "forgotten again")
	require.Len(t, about(h, "user.deleted", late), 2)
	require.Len(t, about(h, "user.deleted", early), 1)

	record := h.Await("user", "user.erasures_repeated", nil)
	payload := &userv1.UserErasuresRepeated{}
	require.NoError(t, record.GetPayload().UnmarshalTo(payload))
	require.Equal(t, admin.UserID.String(), payload.GetRepeatedBy())
}

// Who looks into the ledger stands in the record.
func TestGetErasureIsRecorded(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: deployment})
	anna := named(t, h, "anna", "Anna")
	leave(t, h, auth, anna)
	admin := h.UserWithRole(newID(t), identity.RoleAdmin)
	_, err := deletionsBy(h, admin).GetErasure(t.Context(), &userv1.GetErasureRequest{UserId: anna.String()})
	require.NoError(t, err)
	payload := &userv1.UserErasureViewed{}
	require.NoError(t, h.Await("user", "user.erasure_viewed", nil).GetPayload().UnmarshalTo(payload))
	require.Equal(t, admin.UserID.String(), payload.GetViewedBy())
	require.Equal(t, anna.String(), payload.GetUserId())
}

// A request is either taken back or carried out, whoever is faster.
func TestCancelAgainstTheEnd(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: []string{"user"}})
	people := make([]uuid.UUID, 20)
	for i := range people {
		people[i] = named(t, h, "person"+string(rune('a'+i)), "Person")
		leave(t, h, auth, people[i])
	}
	h.Clock.Advance(grace - time.Second)
	cancelled := make([]bool, len(people))
	var racing sync.WaitGroup
	start := make(chan struct{})
	for i, id := range people {
		racing.Go(func() {
			<-start
			_, err := deletionsBy(h, h.User(id)).CancelDeletion(t.Context(), &userv1.CancelDeletionRequest{})
			cancelled[i] = err == nil
		})
	}
	h.Clock.Advance(11 * time.Second) // the job begins
	close(start)
	racing.Wait()
	h.Clock.Advance(11 * time.Second)
	for i, id := range people {
		if cancelled[i] {
			_, err := profilesOf(h, id).GetProfile(t.Context(), &userv1.GetProfileRequest{})
			require.NoError(t, err, "who took it back stays")
			require.Empty(t, about(h, "user.deleted", id))
			require.Len(t, h.Events("user", "user.deletion_cancelled"), count(cancelled))
			continue
		}
		require.Eventually(t, func() bool { return len(about(h, "user.deleted", id)) == 1 }, 30*time.Second, 20*time.Millisecond)
		require.Equal(t, []string{"user"}, done(ledgerWhenDone(t, h, id)))
	}
}

func ledgerWhenDone(t *testing.T, h *servicetest.Harness, id uuid.UUID) *userv1.GetErasureResponse {
	t.Helper()
	var res *userv1.GetErasureResponse
	require.Eventually(t, func() bool {
		res = ledger(t, h, id)
		return len(done(res)) == 1
	}, 30*time.Second, 20*time.Millisecond)
	return res
}

func count(all []bool) int {
	n := 0
	for _, one := range all {
		if one {
			n++
		}
	}
	return n
}
