package servicetest_test

import (
	"context"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// first emits, by call, what second listens to; second pushes it to the person.
func first(rt **service.Runtime) service.Definition {
	return service.Definition{
		Name: "first", Migrations: fstest.MapFS{},
		Setup: func(_ context.Context, r *service.Runtime) error { *rt = r; return nil },
	}
}

func second(asked chan<- string) service.Definition {
	return service.Definition{
		Name: "second", Migrations: fstest.MapFS{},
		Setup: func(_ context.Context, rt *service.Runtime) error {
			users := userv1connect.NewUserServiceClient(rt.Dial("user"))
			rt.Listen(event.On("first", "thing.happened", event.Once,
				func(ctx context.Context, _ pgx.Tx, ev *eventv1.Event, p *authv1.SessionRevoked) error {
					got, err := users.GetUser(ctx, &userv1.GetUserRequest{UserId: p.GetAccountId()})
					if err != nil {
						return err
					}
					asked <- got.GetUser().GetUsername()
					id, err := uuid.Parse(ev.GetKey())
					if err != nil {
						return err
					}
					if err := rt.Redis.Do(ctx, rt.Redis.B().Set().Key("seen").Value("1").Ex(time.Minute).Build()).Error(); err != nil {
						return err
					}
					return rt.Realtime.Push(ctx, []uuid.UUID{id}, &realtimev1.Push{
						Event: &realtimev1.Push_Conversation{Conversation: &messagingv1.Conversation{Id: ev.GetKey()}},
					})
				}))
			return nil
		},
	}
}

type users struct {
	userv1connect.UserServiceHandler
}

func (users) GetUser(context.Context, *userv1.GetUserRequest) (*userv1.GetUserResponse, error) {
	return &userv1.GetUserResponse{User: &userv1.User{Username: "ada"}}, nil
}

// Two services in one process, a stub of a third, events, pushes: what the tests
// of the domains are made of.
func TestTwoServicesAndAStub(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]servicetest.Options{"InProcess": {}, "H2C": {H2C: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var rt *service.Runtime
			asked := make(chan string, 10)
			h := servicetest.Start(t, opts, first(&rt), second(asked))
			_, stub := userv1connect.NewUserServiceHandler(users{})
			h.Stub("user", stub)
			id := uuid.New()
			pushes := h.Pushes(id)

			require.NoError(t, rt.Outbox.Tx(t.Context(), func(_ pgx.Tx, emit func(...*eventv1.Event) error) error {
				return emit(event.New("thing.happened", id.String(), 1, &authv1.SessionRevoked{AccountId: id.String()}))
			}))
			require.Equal(t, "ada", <-asked)
			push := pushes.Next(func(p *realtimev1.Push) bool { return p.GetConversation() != nil })
			require.Equal(t, id.String(), push.GetConversation().GetId())

			events := h.Events("first", "thing.happened")
			require.Len(t, events, 1)
			require.Equal(t, servicetest.Noon, events[0].GetTime().AsTime(), "the clock stands at noon")
			require.Empty(t, h.Events("second", "anything.else"))

			// The same event again has no second effect, which the barrier still tells.
			h.Deliver("first", "second", events[0])
			require.Empty(t, asked)
		})
	}
}
