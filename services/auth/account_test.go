package auth_test

import (
	"strconv"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	barrierv1 "github.com/parleychat/parley/proto/gen/parley/barrier/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

func TestRegister(t *testing.T) {
	t.Parallel()
	h, client := start(t)

	t.Run("GivesTokensThatOthersAccept", func(t *testing.T) {
		t.Parallel()
		res := register(t, client, "anna")
		claims, err := verifier(h).Verify(t.Context(), res.GetTokens().GetAccessToken())
		require.NoError(t, err)
		require.Equal(t, res.GetUserId(), claims.UserID.String())
		require.Equal(t, res.GetTokens().GetSessionId(), claims.SessionID.String())
		require.Equal(t, identity.RoleUser, claims.Role)
		require.Equal(t, res.GetTokens().GetAccessTokenExpiresAt().AsTime(), claims.ExpiresAt.UTC())
	})
	t.Run("EmitsAccountRegistered", func(t *testing.T) {
		t.Parallel()
		req := person("berta")
		req.DisplayName = " Berta Ω "
		res, err := client.Register(t.Context(), req)
		require.NoError(t, err)
		ev := h.Await("auth", "account.registered", func(ev *eventv1.Event) bool { return ev.GetKey() == res.GetUserId() })
		require.EqualValues(t, 1, ev.GetKeyVersion())
		payload := &authv1.AccountRegistered{}
		require.NoError(t, ev.GetPayload().UnmarshalTo(payload))
		require.Equal(t, "berta", payload.GetUsername())
		require.Equal(t, "Berta Ω", payload.GetDisplayName())
		require.Equal(t, h.Clock.Now(), payload.GetRegisteredAt().AsTime())
		require.NotContains(t, ev.String(), "example.org", "events carry no personal data that nobody needs")
	})
	t.Run("UsernameIsUniqueWithoutRegardToCase", func(t *testing.T) {
		t.Parallel()
		register(t, client, "Cleo")
		req := person("cLEO")
		req.Email = "another@example.org"
		_, err := client.Register(t.Context(), req)
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
	})
	t.Run("EmailIsUniqueWithoutRegardToCase", func(t *testing.T) {
		t.Parallel()
		register(t, client, "doro")
		req := person("dora")
		req.Email = "DORO@Example.ORG"
		_, err := client.Register(t.Context(), req)
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_EMAIL_TAKEN)
	})
	t.Run("OneOfManyAtOnceGetsTheName", func(t *testing.T) {
		t.Parallel()
		const many = 8
		results := make([]error, many)
		var group sync.WaitGroup
		for i := range many {
			group.Go(func() {
				req := person("emil")
				req.Email = strings.Repeat("e", i+1) + "@emil.example.org"
				_, results[i] = client.Register(t.Context(), req)
			})
		}
		group.Wait()
		registered := 0
		for _, err := range results {
			if err == nil {
				registered++
				continue
			}
			requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
		}
		require.Equal(t, 1, registered)
		told := 0
		for _, ev := range h.Events("auth", "account.registered") {
			payload := &authv1.AccountRegistered{}
			require.NoError(t, ev.GetPayload().UnmarshalTo(payload))
			if payload.GetUsername() == "emil" {
				told++
			}
		}
		require.Equal(t, 1, told)
	})
	t.Run("RefusesPasswordsThatAnybodyTriesFirst", func(t *testing.T) {
		t.Parallel()
		for _, weak := range []string{"password1", "QWERTYUIOP", "fritz-fritz"} {
			req := person("fritz-fritz")
			req.Password = weak
			_, err := client.Register(t.Context(), req)
			requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PASSWORD_WEAK)
		}
	})
	t.Run("RefusesWhatTheProtoForbids", func(t *testing.T) {
		t.Parallel()
		for _, spoil := range []func(*authv1.RegisterRequest){
			func(r *authv1.RegisterRequest) { r.Username = "g@example" },
			func(r *authv1.RegisterRequest) { r.Email = "gustav" },
			func(r *authv1.RegisterRequest) { r.Password = "short" },
			func(r *authv1.RegisterRequest) { r.Password = strings.Repeat("x", 257) },
		} {
			req := person("gustav")
			spoil(req)
			_, err := client.Register(t.Context(), req)
			requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
		}
	})
	t.Run("IsCompleteAtOnceWhenNobodyIsAwaited", func(t *testing.T) {
		t.Parallel()
		require.Equal(t, barrierv1.Propagation_PROPAGATION_COMPLETE, register(t, client, "hanna").GetPropagation())
	})
}

func TestRegisterWaits(t *testing.T) {
	t.Parallel()
	t.Run("UntilTheAwaitedServicesHaveCommitted", func(t *testing.T) {
		t.Parallel()
		h, client := start(t, "PARLEY_AUTH_REGISTER_AWAIT=user,messaging")
		conn := h.Bus.Conn()
		_, err := conn.Subscribe(event.Subject("auth", "account.registered"), func(msg *nats.Msg) {
			ev := &eventv1.Event{}
			if proto.Unmarshal(msg.Data, ev) == nil {
				_ = conn.Publish(ev.GetReplySubject(), []byte("user/account.registered"))
				_ = conn.Publish(ev.GetReplySubject(), []byte("messaging/account.registered"))
			}
		})
		require.NoError(t, err)
		require.NoError(t, conn.Flush())
		require.Equal(t, barrierv1.Propagation_PROPAGATION_COMPLETE, register(t, client, "anna").GetPropagation())
	})
	t.Run("AndAnswersPendingWhenTheyAreNotThere", func(t *testing.T) {
		t.Parallel()
		_, client := start(t, "PARLEY_AUTH_REGISTER_AWAIT=user")
		require.Equal(t, barrierv1.Propagation_PROPAGATION_PENDING, register(t, client, "anna").GetPropagation())
	})
}

func TestRegisterIsLimitedPerAddress(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_REGISTER_LIMIT=2")
	for _, name := range []string{"anna", "berta"} {
		_, err := client.Register(from(t, "203.0.113.7"), person(name))
		require.NoError(t, err)
	}
	_, err := client.Register(from(t, "203.0.113.7"), person("cleo"))
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	_, err = client.Register(from(t, "203.0.113.8"), person("cleo"))
	require.NoError(t, err)
	h.Clock.Advance(attemptWindow)
	_, err = client.Register(from(t, "203.0.113.7"), person("doro"))
	require.NoError(t, err)
}

func TestBatchGetAccounts(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	anna, berta := register(t, client, "anna"), register(t, client, "berta")
	req := &authv1.BatchGetAccountsRequest{Ids: []string{anna.GetUserId(), berta.GetUserId(), uuid.NewString()}}

	t.Run("AnswersTheUserService", func(t *testing.T) {
		t.Parallel()
		user := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Service("user", "auth")))
		res, err := user.BatchGetAccounts(t.Context(), req)
		require.NoError(t, err)
		require.Len(t, res.GetAccounts(), 2)
		for _, a := range res.GetAccounts() {
			require.EqualValues(t, 1, a.GetVersion())
			require.Equal(t, h.Clock.Now(), a.GetCreatedAt().AsTime())
			require.Equal(t, a.GetUsername(), a.GetDisplayName())
		}
	})
	t.Run("RefusesEverybodyElse", func(t *testing.T) {
		t.Parallel()
		stranger := authv1connect.NewAuthServiceClient(h.Dial("auth", h.User(uuid.New())))
		_, err := stranger.BatchGetAccounts(t.Context(), req)
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED)
		messaging := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Service("messaging", "auth")))
		_, err = messaging.BatchGetAccounts(t.Context(), req)
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED)
		_, err = client.BatchGetAccounts(t.Context(), req)
		require.Error(t, err)
	})
}

// A user name and an address of one account share a count that tells nobody that they belong together.
func TestTwoNamesGetNoMoreGuesses(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	register(t, client, "anna")
	for i := range 5 {
		_, err := logIn(from(t, "203.0.113."+strconv.Itoa(i+1)), client, "anna", "not-the-password")
		wrongPassword(t, err)
	}
	for range 3 {
		_, err := logIn(from(t, "203.0.113.9"), client, "anna@example.org", password)
		wrongPassword(t, err)
	}
	h.Clock.Advance(attemptWindow)
	_, err := logIn(from(t, "203.0.113.9"), client, "anna@example.org", password)
	require.NoError(t, err)
}

// Whether an address has an account is told to a registration, and not to many from one place.
func TestTakenAddressesAreToldSeldom(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	register(t, client, "anna")
	n := 0
	try := func(network, address string) error {
		n++
		req := person("other-" + strconv.Itoa(n))
		req.Email = address
		_, err := client.Register(from(t, network), req)
		return err
	}
	require.NoError(t, try("203.0.113.1", "free@example.org"))
	limitedAfterFive(t, func(t *testing.T, err error) {
		t.Helper()
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_EMAIL_TAKEN)
	}, func() error { return try("203.0.113.1", "anna@example.org") })
	requireReason(t, try("203.0.113.1", "free2@example.org"), connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	require.NoError(t, try("203.0.113.2", "free2@example.org"))
	h.Clock.Advance(attemptWindow)
	require.NoError(t, try("203.0.113.1", "free3@example.org"))
}
