package auth_test

import (
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// whois is the caller behind a registration.
func whois(t *testing.T, h *servicetest.Harness, res *authv1.RegisterResponse) servicetest.Caller {
	t.Helper()
	id, err := uuid.Parse(res.GetUserId())
	require.NoError(t, err)
	return h.User(id)
}

func changeUsername(t *testing.T, h *servicetest.Harness, by *authv1.RegisterResponse, name string) (*authv1.ChangeUsernameResponse, error) {
	t.Helper()
	client := authv1connect.NewUsernameServiceClient(h.Dial("auth", whois(t, h, by)))
	return client.ChangeUsername(t.Context(), &authv1.ChangeUsernameRequest{Username: name})
}

const month = 30 * 24 * time.Hour

func TestChangeUsername(t *testing.T) {
	t.Parallel()

	t.Run("GivesTheNewNameAndKeepsTheOld", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		anna := register(t, client, "Anna")
		res, err := changeUsername(t, h, anna, "annika")
		require.NoError(t, err)
		require.Equal(t, "annika", res.GetUsername())
		require.Equal(t, servicetest.Noon.Add(month), res.GetNextChangeAt().AsTime())
		_, err = logIn(t.Context(), client, "ANNIKA", password)
		require.NoError(t, err)
		_, err = logIn(t.Context(), client, "anna", password)
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)

		ev := h.Await("auth", "account.username_changed", nil)
		require.Equal(t, anna.GetUserId(), ev.GetKey())
		require.EqualValues(t, 2, ev.GetKeyVersion())
		payload := &authv1.AccountUsernameChanged{}
		require.NoError(t, ev.GetPayload().UnmarshalTo(payload))
		require.Equal(t, "annika", payload.GetUsername())
		require.Equal(t, "Anna", payload.GetDisplayName())
		require.Equal(t, servicetest.Noon, payload.GetRegisteredAt().AsTime())

		// Nobody else gets the old name, neither by registering nor by a change.
		req := person("aNNa")
		req.Email = "another@example.org"
		_, err = client.Register(t.Context(), req)
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
		berta := register(t, client, "berta")
		_, err = changeUsername(t, h, berta, "anna")
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
		_, err = changeUsername(t, h, berta, "Annika")
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
		_, err = changeUsername(t, h, berta, "no spaces")
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
		require.Len(t, h.Events("auth", "account.username_changed"), 1)
	})
	t.Run("OnceAMonthAndTheSameNameIsNoChange", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		anna := register(t, client, "anna")
		res, err := changeUsername(t, h, anna, "anna")
		require.NoError(t, err)
		require.Nil(t, res.GetNextChangeAt())
		_, err = changeUsername(t, h, anna, "Anna")
		require.NoError(t, err, "another spelling is a change")
		h.Clock.Advance(time.Hour)
		_, err = changeUsername(t, h, anna, "Anna")
		require.NoError(t, err)
		_, err = changeUsername(t, h, anna, "annika")
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_USERNAME_CHANGE_TOO_SOON)
		wait := rpc.InfoOf(err).GetRetryAfter().AsDuration()
		require.Equal(t, month-time.Hour, wait)
		h.Clock.Advance(wait)
		_, err = changeUsername(t, h, anna, "annika")
		require.NoError(t, err)
		require.Len(t, h.Events("auth", "account.username_changed"), 2)
	})
	t.Run("TheOwnerMayGoBack", func(t *testing.T) {
		t.Parallel()
		h, client := start(t, "PARLEY_AUTH_USERNAME_CHANGE_EVERY=1h")
		anna := register(t, client, "anna")
		for _, name := range []string{"annika", "anna", "annika"} {
			_, err := changeUsername(t, h, anna, name)
			require.NoError(t, err)
			h.Clock.Advance(time.Hour)
		}
	})
	t.Run("TheOldNameIsFreeAfterAWhile", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		_, err := changeUsername(t, h, register(t, client, "anna"), "annika")
		require.NoError(t, err)
		h.Clock.Advance(month + time.Hour)
		req := person("anna")
		req.Email = "another@example.org"
		require.Eventually(t, func() bool {
			_, err := client.Register(t.Context(), req)
			return err == nil
		}, 20*time.Second, 50*time.Millisecond, "a job gives it back")
	})
	t.Run("OfManyAtOnceOneGetsTheName", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		var people []*authv1.RegisterResponse
		for _, name := range []string{"ada", "bea", "cia", "dea", "eva"} {
			people = append(people, register(t, client, name))
		}
		results := make([]error, len(people))
		var group sync.WaitGroup
		for i, p := range people {
			group.Go(func() { _, results[i] = changeUsername(t, h, p, "wanted") })
		}
		group.Wait()
		done := 0
		for _, err := range results {
			if err == nil {
				done++
				continue
			}
			requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
		}
		require.Equal(t, 1, done)
	})
	t.Run("GuessingTakenNamesIsLimited", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		anna := register(t, client, "anna")
		register(t, client, "berta")
		for range 20 {
			_, err := changeUsername(t, h, anna, "berta")
			requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN)
		}
		_, err := changeUsername(t, h, anna, "berta")
		requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	})
}

func TestConfirmation(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	anna := register(t, client, "anna")
	id := anna.GetUserId()
	check := func(user, session string) time.Time {
		internal := authv1connect.NewConfirmationServiceClient(h.Dial("auth", h.Service("user", "auth")))
		res, err := internal.CheckConfirmation(t.Context(), &authv1.CheckConfirmationRequest{UserId: user, SessionId: session})
		require.NoError(t, err)
		if res.GetConfirmedAt() == nil {
			return time.Time{}
		}
		return res.GetConfirmedAt().AsTime()
	}
	own := authv1connect.NewConfirmationServiceClient(h.Dial("auth", h.Token(anna.GetTokens().GetAccessToken())))
	session := anna.GetTokens().GetSessionId()
	require.Equal(t, servicetest.Noon, check(id, session), "the log-in is a proof")
	require.Zero(t, check(uuid.NewString(), session), "somebody else's session")
	require.Zero(t, check(id, uuid.NewString()), "no session")

	h.Clock.Advance(5 * time.Minute)
	_, err := refresh(t.Context(), client, anna.GetTokens().GetRefreshToken())
	require.NoError(t, err)
	require.Equal(t, servicetest.Noon, check(id, session), "a refresh proves nothing")
	_, err = own.Reauthenticate(t.Context(), &authv1.ReauthenticateRequest{Password: "wrong password"})
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
	require.Equal(t, servicetest.Noon, check(id, session))
	res, err := own.Reauthenticate(t.Context(), &authv1.ReauthenticateRequest{Password: password})
	require.NoError(t, err)
	require.Equal(t, h.Clock.Now(), res.GetConfirmedAt().AsTime())
	require.Equal(t, h.Clock.Now(), check(id, session))

	_, err = authv1connect.NewConfirmationServiceClient(h.Dial("auth", whois(t, h, anna))).
		Reauthenticate(t.Context(), &authv1.ReauthenticateRequest{Password: password})
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED)
	for range 6 { // the success has forgotten the first failure
		_, err = own.Reauthenticate(t.Context(), &authv1.ReauthenticateRequest{Password: "wrong password"})
	}
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	logout := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Token(anna.GetTokens().GetAccessToken())))
	_, err = logout.LogOut(t.Context(), &authv1.LogOutRequest{})
	require.NoError(t, err)
	require.Zero(t, check(id, session), "an ended session")
	var recorded int
	require.NoError(t, h.DB("auth").QueryRow(t.Context(),
		`SELECT count(*) FROM audit WHERE account_id = $1 AND action = 'session.confirmed' AND refused = ''`, id).Scan(&recorded))
	require.Equal(t, 1, recorded)
	for _, caller := range []servicetest.Caller{whois(t, h, anna), h.Service("messaging", "auth"), h.Anonymous()} {
		_, err := authv1connect.NewConfirmationServiceClient(h.Dial("auth", caller)).
			CheckConfirmation(t.Context(), &authv1.CheckConfirmationRequest{UserId: id, SessionId: session})
		require.Error(t, err)
	}
}
