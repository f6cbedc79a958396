package service_test

import (
	"context"
	"errors"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var shapes = map[string]servicetest.Options{"InProcess": {}, "H2C": {H2C: true}}

// registered is the event by which the example learns of a person.
func registered(id uuid.UUID, username string, version int64) *eventv1.Event {
	return event.New("account.registered", id.String(), version,
		&authv1.AccountRegistered{AccountId: id.String(), Username: username})
}

func TestAServiceWorksInBothShapes(t *testing.T) {
	t.Parallel()
	for name, opts := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts.Settings = []string{"PARLEY_USER_GREETING=moin"}
			e := &example{}
			h := servicetest.Start(t, opts, e.definition())
			require.Equal(t, exampleSettings{Greeting: "moin", Limit: 3}, e.settings)

			id := uuid.New()
			client := userv1connect.NewUserServiceClient(h.Dial("user", h.User(id)))
			_, err := client.GetUser(t.Context(), &userv1.GetUserRequest{})
			require.Equal(t, errorv1.Reason_REASON_USER_NOT_FOUND, rpc.ReasonOf(err))

			h.Deliver("auth", "user", registered(id, "ada", 2), registered(id, "old", 1))
			got, err := client.GetUser(t.Context(), &userv1.GetUserRequest{})
			require.NoError(t, err)
			require.Equal(t, "ada", got.GetUser().GetUsername())

			told := h.Await("user", "user.created", func(ev *eventv1.Event) bool { return ev.GetKey() == id.String() })
			require.Equal(t, int64(2), told.GetKeyVersion())
			require.Len(t, h.Events("user", "user.created"), 1)

			h.Clock.Advance(2 * servicetest.TokenLife)
			_, err = client.GetUser(t.Context(), &userv1.GetUserRequest{})
			require.NoError(t, err, "each call has a fresh token")
		})
	}
}

func TestCallersAreTold(t *testing.T) {
	t.Parallel()
	for name, opts := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := servicetest.Start(t, opts, (&example{}).definition())
			person := h.User(uuid.New())
			raw := h.AccessToken(person)
			h.Deliver("auth", "user", registered(person.UserID, "ada", 1))
			call := func(c servicetest.Caller) errorv1.Reason {
				_, err := userv1connect.NewUserServiceClient(h.Dial("user", c)).GetUser(t.Context(), &userv1.GetUserRequest{})
				return rpc.ReasonOf(err)
			}
			require.Equal(t, errorv1.Reason_REASON_UNSPECIFIED, call(person))
			require.Equal(t, errorv1.Reason_REASON_UNSPECIFIED, call(h.Token(raw)))
			require.Equal(t, errorv1.Reason_REASON_TOKEN_MISSING, call(h.Anonymous()))
			require.Equal(t, errorv1.Reason_REASON_TOKEN_INVALID, call(h.Token("x")))

			// The revocation reaches every process by the stream of auth.
			h.Publish("auth", event.New("session.revoked", person.SessionID.String(), 1,
				&authv1.SessionRevoked{SessionId: person.SessionID.String()}))
			require.Eventually(t, func() bool { return call(person) == errorv1.Reason_REASON_SESSION_REVOKED },
				eventually, tick, "the revocation has to arrive")

			h.Clock.Advance(2 * servicetest.TokenLife)
			require.Equal(t, errorv1.Reason_REASON_TOKEN_EXPIRED, call(h.Token(raw)))
		})
	}
}

func TestAStubAnswersForAnotherService(t *testing.T) {
	t.Parallel()
	for name, opts := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var other userv1connect.UserServiceClient
			e := &example{setup: func(rt *service.Runtime) error {
				other = userv1connect.NewUserServiceClient(rt.Dial("group"))
				return nil
			}}
			h := servicetest.Start(t, opts, e.definition())
			_, err := other.GetUser(t.Context(), &userv1.GetUserRequest{})
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))

			_, stub := userv1connect.NewUserServiceHandler(stubUsers{})
			h.Stub("group", stub)
			got, err := other.GetUser(t.Context(), &userv1.GetUserRequest{})
			require.NoError(t, err)
			require.Equal(t, "stub", got.GetUser().GetUsername())
		})
	}
}

type stubUsers struct {
	userv1connect.UserServiceHandler
}

func (stubUsers) GetUser(context.Context, *userv1.GetUserRequest) (*userv1.GetUserResponse, error) {
	return &userv1.GetUserResponse{User: &userv1.User{Username: "stub"}}, nil
}

func TestReplicasShareTheWork(t *testing.T) {
	t.Parallel()
	def := (&example{}).definition()
	h := servicetest.Start(t, servicetest.Options{H2C: true}, def)
	second := h.Add((&example{}).definition())
	first := h.Instances("user")[0]

	id := uuid.New()
	h.Deliver("auth", "user", registered(id, "ada", 1))
	for _, in := range []*servicetest.Instance{first, second} {
		_, err := userv1connect.NewUserServiceClient(h.DialInstance(in, h.User(id))).GetUser(t.Context(), &userv1.GetUserRequest{})
		require.NoError(t, err)
	}
	require.NoError(t, first.Stop())
	h.Deliver("auth", "user", registered(id, "grace", 2))
	got, err := userv1connect.NewUserServiceClient(h.Dial("user", h.User(id))).GetUser(t.Context(), &userv1.GetUserRequest{})
	require.NoError(t, err)
	require.Equal(t, "grace", got.GetUser().GetUsername())
}

func TestAFaultInSetupStopsTheStart(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		settings []string
		setup    func(*service.Runtime) error
		says     string
	}{
		"Setup fails":        {nil, func(*service.Runtime) error { return boom }, "start user: boom"},
		"an unknown setting": {[]string{"PARLEY_USER_GREETNIG=x"}, nil, "PARLEY_USER_GREETNIG: no such setting"},
		"an invalid setting": {[]string{"PARLEY_USER_LIMIT=0"}, nil, "PARLEY_USER_LIMIT"},
		"a path served twice": {nil, func(rt *service.Runtime) error {
			rt.Handle(userv1connect.NewUserServiceHandler(stubUsers{}))
			return nil
		}, "already served"},
		"an unknown service": {nil, func(rt *service.Runtime) error { rt.Handle("/parley.nope.v1.NopeService/", nil); return nil }, "parley.nope.v1.NopeService"},
		"a listener twice": {nil, func(rt *service.Runtime) error {
			rt.Listen(event.On("auth", "account.registered", event.ByVersion, (&example{}).onRegistered))
			return nil
		}, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &example{setup: c.setup}
			err := servicetest.StartFails(t, servicetest.Options{Settings: c.settings}, e.definition())
			require.ErrorContains(t, err, c.says)
			require.Error(t, e.rt.DB.Ping(t.Context()), "the pool is closed")
		})
	}
}

// TestReservedConnectionsEndWithTheService holds that they are beside those of the pool,
// and are closed with it, also when the start fails.
func TestReservedConnectionsEndWithTheService(t *testing.T) {
	t.Parallel()
	for name, boom := range map[string]error{"It runs": nil, "Setup fails": errors.New("boom")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var reserved *pgxpool.Pool
			e := &example{setup: func(rt *service.Runtime) (err error) {
				if reserved, err = rt.Reserve(t.Context(), 2); err == nil {
					err = reserved.Ping(t.Context())
				}
				return errors.Join(err, boom)
			}}
			// After the end of the service, which is a cleanup, too.
			t.Cleanup(func() { require.Error(t, reserved.Ping(context.WithoutCancel(t.Context())), "it is closed") })
			if boom != nil {
				require.ErrorIs(t, servicetest.StartFails(t, servicetest.Options{}, e.definition()), boom)
				return
			}
			servicetest.Start(t, servicetest.Options{}, e.definition())
			require.EqualValues(t, 2, reserved.Config().MaxConns)
			require.NoError(t, reserved.Ping(t.Context()))
		})
	}
}

func TestDefinitionAndDepsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := service.Start(t.Context(), service.Definition{Name: "user"}, service.Deps{})
	require.ErrorContains(t, err, "service user has no Setup")
	require.ErrorContains(t, err, "service dependency Bus is not set")
}
