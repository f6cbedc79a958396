package user_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	erasurev1 "github.com/parleychat/parley/proto/gen/parley/erasure/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/services/user"
)

// deployment is what user is told; the others are played by the test.
var deployment = []string{"auth", "user", "messaging"}

const grace = 14 * 24 * time.Hour

func deletionsBy(h *servicetest.Harness, c servicetest.Caller) userv1connect.DeletionServiceClient {
	return userv1connect.NewDeletionServiceClient(h.Dial("user", c))
}

// leave has somebody ask for its deletion.
func leave(t *testing.T, h *servicetest.Harness, auth *fakeAuth, id uuid.UUID) *userv1.Deletion {
	t.Helper()
	caller := h.User(id)
	auth.confirms(caller, h.Clock.Now())
	res, err := deletionsBy(h, caller).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	require.NoError(t, err)
	return res.GetDeletion()
}

func ledger(t *testing.T, h *servicetest.Harness, id uuid.UUID) *userv1.GetErasureResponse {
	t.Helper()
	admin := h.UserWithRole(newID(t), identity.RoleAdmin)
	res, err := deletionsBy(h, admin).GetErasure(t.Context(), &userv1.GetErasureRequest{UserId: id.String()})
	require.NoError(t, err)
	return res
}

// done lists the services that have reported.
func done(res *userv1.GetErasureResponse) []string {
	names := []string{}
	for _, s := range res.GetServices() {
		if s.GetDoneAt() != nil {
			names = append(names, s.GetService())
		}
	}
	return names
}

func forgotten(domain string, id uuid.UUID) *eventv1.Event {
	return event.New(domain+".person_forgotten", id.String(), 1, &erasurev1.PersonForgotten{UserId: id.String()})
}

func TestRequestDeletion(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: deployment})

	t.Run("NeedsAFreshConfirmation", func(t *testing.T) {
		t.Parallel()
		caller := h.User(named(t, h, "anna", "Anna"))
		_, err := deletionsBy(h, caller).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
		auth.confirms(caller, h.Clock.Now().Add(-10*time.Minute-time.Second))
		_, err = deletionsBy(h, caller).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
		another := h.User(caller.UserID)
		auth.confirms(caller, h.Clock.Now())
		_, err = deletionsBy(h, another).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
		_, err = deletionsBy(h, caller).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
		require.NoError(t, err)
	})
	t.Run("WaitsForTheGraceAndRepeatsItsAnswer", func(t *testing.T) {
		t.Parallel()
		berta := named(t, h, "berta", "Berta")
		first := leave(t, h, auth, berta)
		require.Equal(t, servicetest.Noon, first.GetRequestedAt().AsTime())
		require.Equal(t, servicetest.Noon.Add(grace), first.GetDueAt().AsTime())
		require.Equal(t, first.String(), leave(t, h, auth, berta).String())
		res, err := deletionsBy(h, h.User(berta)).GetDeletion(t.Context(), &userv1.GetDeletionRequest{})
		require.NoError(t, err)
		require.Equal(t, first.String(), res.GetDeletion().String())
		require.Nil(t, ledger(t, h, berta).GetDeletedAt())
		require.Empty(t, ledger(t, h, berta).GetServices())
	})
	t.Run("CanBeTakenBack", func(t *testing.T) {
		t.Parallel()
		cleo := named(t, h, "cleo", "Cleo")
		leave(t, h, auth, cleo)
		for range 2 {
			_, err := deletionsBy(h, h.User(cleo)).CancelDeletion(t.Context(), &userv1.CancelDeletionRequest{})
			require.NoError(t, err)
		}
		res, err := deletionsBy(h, h.User(cleo)).GetDeletion(t.Context(), &userv1.GetDeletionRequest{})
		require.NoError(t, err)
		require.Nil(t, res.GetDeletion())
		leave(t, h, auth, cleo)
		told := 0
		for _, typ := range []string{"user.deletion_requested", "user.deletion_cancelled"} {
			for _, ev := range h.Events("user", typ) {
				payload := &userv1.UserDeletionRequested{}
				if ev.GetPayload().MessageIs(payload) {
					require.NoError(t, ev.GetPayload().UnmarshalTo(payload))
					if payload.GetUserId() == cleo.String() {
						told++
					}
				}
			}
		}
		require.Equal(t, 2, told)
	})
	t.Run("TheLedgerIsForAdmins", func(t *testing.T) {
		t.Parallel()
		for _, role := range []identity.Role{identity.RoleUser, identity.RoleModerator} {
			_, err := deletionsBy(h, h.UserWithRole(newID(t), role)).GetErasure(t.Context(), &userv1.GetErasureRequest{UserId: uuid.NewString()})
			requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED)
		}
		_, err := deletionsBy(h, h.UserWithRole(newID(t), identity.RoleAdmin)).GetErasure(t.Context(), &userv1.GetErasureRequest{UserId: uuid.NewString()})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_ERASURE_NOT_FOUND)
	})
}

func TestDeletionIsCarriedOutOnce(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: deployment})
	h.Add(user.Definition()) // two replicas: one leader at a time, and row locks
	anna, berta := named(t, h, "anna", "Anna Canary"), named(t, h, "berta", "Berta")
	for _, id := range []uuid.UUID{anna, berta} {
		leave(t, h, auth, id)
	}
	_, err := deletionsBy(h, h.User(berta)).CancelDeletion(t.Context(), &userv1.CancelDeletionRequest{})
	require.NoError(t, err)
	h.Clock.Advance(grace - time.Minute)
	require.Empty(t, h.Events("user", "user.deleted"))
	h.Clock.Advance(2 * time.Minute)

	ev := h.Await("user", "user.deleted", nil)
	require.Equal(t, anna.String(), ev.GetKey())
	require.EqualValues(t, 2, ev.GetKeyVersion())
	// user listens to itself like everybody else.
	require.Eventually(t, func() bool { return len(done(ledger(t, h, anna))) == 1 }, 20*time.Second, 20*time.Millisecond, "user reports")
	require.Len(t, ledger(t, h, anna).GetServices(), 3)
	h.Deliver("auth", "user", forgotten("auth", anna), forgotten("auth", anna))
	require.Equal(t, []string{"auth", "user"}, done(ledger(t, h, anna)))
	h.Deliver("messaging", "user", forgotten("messaging", anna))
	require.Equal(t, []string{"auth", "messaging", "user"}, done(ledger(t, h, anna)))

	require.Len(t, h.Events("user", "user.deleted"), 1)
	// The event again, and late events about the person, change nothing.
	h.Deliver("user", "user/user.deleted", ev)
	h.Deliver("auth", "user", registered(anna, "anna"), usernameChanged(anna, 5, "anna5"))
	require.Len(t, h.Events("user", "user.person_forgotten"), 1)

	other, err := clientOf(h, berta).GetUser(t.Context(), &userv1.GetUserRequest{UserId: anna.String()})
	require.NoError(t, err)
	require.Equal(t, (&userv1.User{Id: anna.String(), Version: 2, Deleted: true}).String(), other.GetUser().String())
	require.Zero(t, auth.calls.Load(), "a deleted person is not asked for")
	_, err = profilesOf(h, anna).GetProfile(t.Context(), &userv1.GetProfileRequest{})
	requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	_, err = profilesOf(h, anna).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{DisplayName: "x", Version: 2, UpdateMask: mask("display_name")})
	requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	_, err = deletionsBy(h, h.User(anna)).CancelDeletion(t.Context(), &userv1.CancelDeletionRequest{})
	requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	_, err = clientOf(h, berta).GetUser(t.Context(), &userv1.GetUserRequest{})
	require.NoError(t, err, "who took it back stays")
}

// A process that dies between two steps leaves the rest to the next one.
func TestDeletionGoesOnAfterACrash(t *testing.T) {
	t.Parallel()
	t.Run("BeforeItIsDue", func(t *testing.T) {
		t.Parallel()
		h, auth := startWith(t, servicetest.Options{Services: deployment})
		anna := named(t, h, "anna", "Anna")
		leave(t, h, auth, anna)
		require.NoError(t, h.Instances("user")[0].Stop())
		h.Clock.Advance(grace + time.Minute)
		h.Add(user.Definition())
		require.Eventually(t, func() bool { return len(done(ledger(t, h, anna))) == 1 }, 30*time.Second, 50*time.Millisecond, "the next process does it")
		require.Len(t, h.Events("user", "user.deleted"), 1)
	})
	t.Run("BetweenItsCommitAndTheEvent", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateNATS(t)
		h, auth := startWith(t, servicetest.Options{Services: deployment, NATSURL: server.URL})
		anna := named(t, h, "anna", "Anna")
		leave(t, h, auth, anna)
		// The bus is away, so that what the process commits stays in the outbox; then the process is gone too.
		server.Kill9()
		h.Clock.Advance(grace + time.Minute)
		require.Eventually(t, func() bool {
			var unsent int
			err := h.DB("user").QueryRow(t.Context(), `SELECT count(*) FROM deletion, outbox WHERE deleted_at IS NOT NULL`).Scan(&unsent)
			require.NoError(t, err)
			return unsent > 0
		}, 30*time.Second, 50*time.Millisecond, "committed, and not told")
		_ = h.Instances("user")[0].Stop() // it cannot say that it goes
		server.Restart()
		h.Add(user.Definition())
		require.Eventually(t, func() bool {
			h.Clock.Advance(time.Second) // what the dead one had taken becomes free
			return len(done(ledger(t, h, anna))) == 1
		}, time.Minute, 100*time.Millisecond, "the next process tells it")
		require.Len(t, h.Events("user", "user.deleted"), 1)
	})
}

// A service that does not report in time is named in the log, again and again.
func TestLateServicesAreNamed(t *testing.T) {
	t.Parallel()
	var said lateLog
	h, auth := startWith(t, servicetest.Options{Services: deployment, Log: slog.New(&said)})
	anna := named(t, h, "anna", "Anna")
	leave(t, h, auth, anna)
	h.Clock.Advance(grace + time.Minute)
	require.Eventually(t, func() bool { return len(done(ledger(t, h, anna))) == 1 }, 30*time.Second, 50*time.Millisecond, "user reports")
	h.Deliver("auth", "user", forgotten("auth", anna))
	require.Empty(t, said.late())
	h.Clock.Advance(time.Hour + time.Minute)
	require.Eventually(t, func() bool { return slices.Equal(said.late(), []string{"messaging"}) }, 30*time.Second, 50*time.Millisecond, "who is late")
	h.Deliver("messaging", "user", forgotten("messaging", anna))
	h.Clock.Advance(11 * time.Minute)
	require.Never(t, func() bool { return len(said.late()) > 1 }, 3*time.Second, 100*time.Millisecond, "nobody is late any more")
}

// lateLog keeps which services were called late.
type lateLog struct {
	mu    sync.Mutex
	names []string
}

func (l *lateLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *lateLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lateLog) WithGroup(string) slog.Handler            { return l }

func (l *lateLog) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "late" {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.names = append(l.names, a.Value.String())
		}
		return true
	})
	return nil
}

func (l *lateLog) late() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.names)
}

func TestWithoutTheListOfServicesNobodyIsDeleted(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: []string{}})
	anna := named(t, h, "anna", "Anna")
	caller := h.User(anna)
	auth.confirms(caller, h.Clock.Now())
	_, err := deletionsBy(h, caller).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
	stream, err := userv1connect.NewExportServiceClient(h.Dial("user", caller)).ExportData(t.Context(), &userv1.ExportDataRequest{})
	require.NoError(t, err)
	require.False(t, stream.Receive())
	requireReason(t, stream.Err(), connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
	require.NoError(t, stream.Close())
}

func TestConfirmationsCannotBeHad(t *testing.T) {
	t.Parallel()
	h, auth := startWith(t, servicetest.Options{Services: deployment})
	anna := named(t, h, "anna", "Anna")
	auth.goesAway()
	_, err := deletionsBy(h, h.User(anna)).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
}
