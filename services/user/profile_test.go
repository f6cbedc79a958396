package user_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/services/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAuth knows the accounts whose events have not come.
type fakeAuth struct {
	authv1connect.UnimplementedAuthServiceHandler

	authv1connect.UnimplementedConfirmationServiceHandler

	mu        sync.Mutex
	accounts  map[string]*authv1.Account
	confirmed map[string]time.Time // by session
	away      bool
	calls     atomic.Int32
}

func (f *fakeAuth) CheckConfirmation(_ context.Context, req *authv1.CheckConfirmationRequest) (*authv1.CheckConfirmationResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "away")
	}
	res := &authv1.CheckConfirmationResponse{}
	if at, ok := f.confirmed[req.GetUserId()+" "+req.GetSessionId()]; ok {
		res.ConfirmedAt = timestamppb.New(at)
	}
	return res, nil
}

// confirms notes that the owner of a session has proved to be it.
func (f *fakeAuth) confirms(c servicetest.Caller, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmed[c.UserID.String()+" "+c.SessionID.String()] = at
}

func (f *fakeAuth) BatchGetAccounts(_ context.Context, req *authv1.BatchGetAccountsRequest) (*authv1.BatchGetAccountsResponse, error) {
	f.calls.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "away")
	}
	res := &authv1.BatchGetAccountsResponse{}
	for _, id := range req.GetIds() {
		if a, ok := f.accounts[id]; ok {
			res.Accounts = append(res.Accounts, a)
		}
	}
	return res, nil
}

func (f *fakeAuth) knows(id uuid.UUID, username string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accounts[id.String()] = &authv1.Account{
		Id: id.String(), Username: username, DisplayName: "The " + username, CreatedAt: timestamppb.New(servicetest.Noon), Version: 1,
	}
}

func (f *fakeAuth) goesAway() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = true
}

func start(t *testing.T) (*servicetest.Harness, *fakeAuth) {
	t.Helper()
	return startWith(t, servicetest.Options{})
}

func startWith(t *testing.T, options servicetest.Options, more ...func(*http.ServeMux)) (*servicetest.Harness, *fakeAuth) {
	t.Helper()
	h := servicetest.Start(t, options, user.Definition())
	auth := &fakeAuth{accounts: map[string]*authv1.Account{}, confirmed: map[string]time.Time{}}
	mux := http.NewServeMux()
	mux.Handle(authv1connect.NewAuthServiceHandler(auth))
	mux.Handle(authv1connect.NewConfirmationServiceHandler(auth))
	for _, add := range more {
		add(mux)
	}
	h.Stub("auth", mux)
	return h, auth
}

func clientOf(h *servicetest.Harness, id uuid.UUID) userv1connect.UserServiceClient {
	return userv1connect.NewUserServiceClient(h.Dial("user", h.User(id)))
}

// newID is an id as auth makes them.
func newID(t *testing.T) uuid.UUID {
	t.Helper()
	id, err := uuid.NewV7()
	require.NoError(t, err)
	return id
}

func registered(id uuid.UUID, username string) *eventv1.Event {
	return event.New("account.registered", id.String(), 1, &authv1.AccountRegistered{
		AccountId: id.String(), Username: username, DisplayName: "The " + username, RegisteredAt: timestamppb.New(servicetest.Noon),
	})
}

func requireReason(t *testing.T, err error, code connect.Code, reason errorv1.Reason) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code.String(), connect.CodeOf(err).String())
	require.Equal(t, reason.String(), rpc.ReasonOf(err).String())
}

// createdEvents are the events user.created about one person.
func createdEvents(h *servicetest.Harness, id uuid.UUID) []*eventv1.Event {
	var about []*eventv1.Event
	for _, ev := range h.Events("user", "user.created") {
		if ev.GetKey() == id.String() {
			about = append(about, ev)
		}
	}
	return about
}

func TestAccountRegistered(t *testing.T) {
	t.Parallel()
	h, auth := start(t)

	t.Run("MakesTheProfileAndTellsIt", func(t *testing.T) {
		t.Parallel()
		anna := newID(t)
		h.Deliver("auth", "user/account.registered", registered(anna, "anna"))
		res, err := clientOf(h, anna).GetUser(t.Context(), &userv1.GetUserRequest{})
		require.NoError(t, err)
		require.Equal(t, anna.String(), res.GetUser().GetId())
		require.Equal(t, "anna", res.GetUser().GetUsername())
		require.Equal(t, "The anna", res.GetUser().GetDisplayName())
		require.Equal(t, servicetest.Noon, res.GetUser().GetCreatedAt().AsTime())
		require.EqualValues(t, 1, res.GetUser().GetVersion())

		ev := h.Await("user", "user.created", func(ev *eventv1.Event) bool { return ev.GetKey() == anna.String() })
		require.EqualValues(t, 1, ev.GetKeyVersion())
		payload := &userv1.UserCreated{}
		require.NoError(t, ev.GetPayload().UnmarshalTo(payload))
		require.Equal(t, "anna", payload.GetUsername())
	})
	t.Run("TwiceTellsOnce", func(t *testing.T) {
		t.Parallel()
		berta := newID(t)
		h.Deliver("auth", "user/account.registered", registered(berta, "berta"), registered(berta, "berta"))
		require.Len(t, createdEvents(h, berta), 1)
	})
	t.Run("AfterTheProfileWasAskedForChangesNothing", func(t *testing.T) {
		t.Parallel()
		cleo := newID(t)
		auth.knows(cleo, "cleo")
		_, err := clientOf(h, cleo).GetUser(t.Context(), &userv1.GetUserRequest{})
		require.NoError(t, err)
		h.Deliver("auth", "user/account.registered", registered(cleo, "older"))
		res, err := clientOf(h, cleo).GetUser(t.Context(), &userv1.GetUserRequest{})
		require.NoError(t, err)
		require.Equal(t, "cleo", res.GetUser().GetUsername())
		require.Len(t, createdEvents(h, cleo), 1)
	})
}

func TestGetUser(t *testing.T) {
	t.Parallel()
	h, auth := start(t)
	anna := newID(t)
	h.Deliver("auth", "user", registered(anna, "anna"))
	client := clientOf(h, anna)

	t.Run("FindsOthers", func(t *testing.T) {
		t.Parallel()
		res, err := clientOf(h, newID(t)).GetUser(t.Context(), &userv1.GetUserRequest{UserId: anna.String()})
		require.NoError(t, err)
		require.Equal(t, "anna", res.GetUser().GetUsername())
	})
	t.Run("AsksAuthBeforeTheEventArrives", func(t *testing.T) {
		t.Parallel()
		berta := newID(t)
		auth.knows(berta, "berta")
		for range 2 {
			res, err := client.GetUser(t.Context(), &userv1.GetUserRequest{UserId: berta.String()})
			require.NoError(t, err)
			require.Equal(t, "The berta", res.GetUser().GetDisplayName())
			require.EqualValues(t, 1, res.GetUser().GetVersion())
		}
		require.Len(t, createdEvents(h, berta), 1)
	})
	t.Run("ManyAtOnceMakeOneProfile", func(t *testing.T) {
		t.Parallel()
		for n := range 20 { // some look while others still find nothing
			cleo := newID(t)
			auth.knows(cleo, fmt.Sprintf("cleo_%d", n))
			errs := make([]error, 8)
			var group sync.WaitGroup
			for i := range errs {
				group.Go(func() {
					_, errs[i] = client.GetUser(t.Context(), &userv1.GetUserRequest{UserId: cleo.String()})
				})
			}
			group.Wait()
			for _, err := range errs {
				require.NoError(t, err)
			}
			require.Len(t, createdEvents(h, cleo), 1)
		}
	})
	t.Run("NobodyIsNotFound", func(t *testing.T) {
		t.Parallel()
		_, err := client.GetUser(t.Context(), &userv1.GetUserRequest{UserId: newID(t).String()})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	})
	t.Run("NeedsAToken", func(t *testing.T) {
		t.Parallel()
		anonymous := userv1connect.NewUserServiceClient(h.Dial("user", h.Anonymous()))
		_, err := anonymous.GetUser(t.Context(), &userv1.GetUserRequest{UserId: anna.String()})
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
	})
	t.Run("RefusesWhatIsNoID", func(t *testing.T) {
		t.Parallel()
		_, err := client.GetUser(t.Context(), &userv1.GetUserRequest{UserId: "anna"})
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	})
}

func TestAuthIsAway(t *testing.T) {
	t.Parallel()
	h, auth := start(t)
	anna := newID(t)
	h.Deliver("auth", "user", registered(anna, "anna"))
	auth.goesAway()
	client := clientOf(h, anna)

	_, err := client.GetUser(t.Context(), &userv1.GetUserRequest{})
	require.NoError(t, err, "profiles do not need auth")
	_, err = client.GetUser(t.Context(), &userv1.GetUserRequest{UserId: newID(t).String()})
	requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
	before := auth.calls.Load()
	_, err = client.GetUser(t.Context(), &userv1.GetUserRequest{UserId: uuid.NewString()})
	requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	require.Equal(t, before, auth.calls.Load(), "an id that auth never made is not asked for")
}

func TestBatchGetUsers(t *testing.T) {
	t.Parallel()
	h, auth := start(t)
	anna, berta, cleo := newID(t), newID(t), newID(t)
	h.Deliver("auth", "user", registered(anna, "anna"), registered(berta, "berta"))
	auth.knows(cleo, "cleo")
	res, err := clientOf(h, anna).BatchGetUsers(t.Context(), &userv1.BatchGetUsersRequest{UserIds: []string{
		anna.String(), berta.String(), anna.String(), cleo.String(), cleo.String(), newID(t).String(), uuid.NewString(),
	}})
	require.NoError(t, err)
	names := map[string]int{}
	for _, u := range res.GetUsers() {
		names[u.GetUsername()]++
	}
	require.Equal(t, map[string]int{"anna": 1, "berta": 1, "cleo": 1}, names)
	require.EqualValues(t, 1, auth.calls.Load(), "one call for all who are missing")

	_, err = clientOf(h, anna).BatchGetUsers(t.Context(), &userv1.BatchGetUsersRequest{})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
}
