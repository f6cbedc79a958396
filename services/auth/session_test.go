package auth_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/token"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// attemptWindow is how long failures count.
const attemptWindow = 15 * time.Minute

const refreshGrace = 10 * time.Second

func TestLogIn(t *testing.T) {
	t.Parallel()
	h, client := start(t, "PARLEY_AUTH_LOGIN_LIMIT=0")
	anna := register(t, client, "Anna")

	t.Run("TakesUsernameOrEmailInAnyCase", func(t *testing.T) {
		t.Parallel()
		for _, login := range []string{"Anna", "anna", "ANNA@example.org"} {
			res, err := logIn(t.Context(), client, login, password)
			require.NoError(t, err)
			require.Equal(t, anna.GetUserId(), res.GetUserId())
			require.NotEqual(t, anna.GetTokens().GetSessionId(), res.GetTokens().GetSessionId(), "each log in is a session")
			_, err = verifier(h).Verify(t.Context(), res.GetTokens().GetAccessToken())
			require.NoError(t, err)
		}
	})
	t.Run("AnswersTheSameForUnknownAndForWrong", func(t *testing.T) {
		t.Parallel()
		_, wrong := logIn(t.Context(), client, "anna", "not-the-password")
		requireReason(t, wrong, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
		_, unknown := logIn(t.Context(), client, "nobody", "not-the-password")
		_, unknownAddress := logIn(t.Context(), client, "nobody@example.org", "not-the-password")
		require.Equal(t, wrong.Error(), unknown.Error())
		require.Equal(t, wrong.Error(), unknownAddress.Error())
		require.Equal(t, rpc.InfoOf(wrong).String(), rpc.InfoOf(unknown).String())
	})
	t.Run("ComparesEveryByteOfAPassword", func(t *testing.T) {
		t.Parallel()
		long := strings.Repeat("なが", 40)
		req := person("berta")
		req.Password = long + "x"
		_, err := client.Register(t.Context(), req)
		require.NoError(t, err)
		_, err = logIn(t.Context(), client, "berta", long+"y")
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
		_, err = logIn(t.Context(), client, "berta", long+"x")
		require.NoError(t, err)
	})
	t.Run("BringsAStoredPasswordToThePresentCost", func(t *testing.T) {
		t.Parallel()
		h, client := start(t)
		register(t, client, "cleo")
		before := storedPassword(t, h)
		dearer, other := start(t, "PARLEY_AUTH_BCRYPT_COST=5")
		register(t, other, "cleo")
		_, err := dearer.DB("auth").Exec(t.Context(), "UPDATE account SET password_hash = $1", before)
		require.NoError(t, err)
		_, err = logIn(t.Context(), other, "cleo", password)
		require.NoError(t, err)
		require.Contains(t, storedPassword(t, dearer), "$05$")
		_, err = logIn(t.Context(), other, "cleo", password)
		require.NoError(t, err)
	})
}

// TestLogInIsLimited runs in both shapes, because the way of the client's address differs.
func TestLogInIsLimited(t *testing.T) {
	t.Parallel()
	t.Run("InProcess", func(t *testing.T) {
		t.Parallel()
		testLogInIsLimited(t, servicetest.Options{})
	})
	t.Run("OverHTTP", func(t *testing.T) {
		t.Parallel()
		testLogInIsLimited(t, servicetest.Options{H2C: true})
	})
}

func testLogInIsLimited(t *testing.T, options servicetest.Options) {
	t.Helper()
	h, client := startWith(t, options)
	register(t, client, "anna")
	register(t, client, "berta")
	fail := func(address, login string) error {
		_, err := logIn(from(t, address), client, login, "not-the-password")
		return err
	}
	limited := func(err error) {
		t.Helper()
		requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
		require.Positive(t, rpc.InfoOf(err).GetRetryAfter().AsDuration())
		require.LessOrEqual(t, rpc.InfoOf(err).GetRetryAfter().AsDuration(), attemptWindow)
	}

	// The account, from many addresses. The right password is refused like a wrong one.
	for i := range 5 {
		err := fail("203.0.113."+string(rune('1'+i)), "anna")
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID)
	}
	_, err := logIn(from(t, "203.0.113.9"), client, "anna", password)
	limited(err)
	// A name that nobody has is limited alike.
	for range 5 {
		require.Error(t, fail("198.51.100.200", "nobody"))
	}
	limited(fail("198.51.100.201", "nobody"))

	// The address, for many accounts. What the client itself writes into the header is not believed.
	for _, login := range []string{"cleo", "doro", "emil", "fritz", "gustav"} {
		require.Error(t, fail("192.0.2.1, 198.51.100.7", login))
	}
	_, err = logIn(from(t, "192.0.2.2, 198.51.100.7"), client, "berta", password)
	limited(err)
	_, err = logIn(from(t, "198.51.100.8"), client, "berta", password)
	require.NoError(t, err)

	h.Clock.Advance(attemptWindow)
	_, err = logIn(from(t, "198.51.100.7"), client, "anna", password)
	require.NoError(t, err)
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	reused := func(t *testing.T, token string) {
		t.Helper()
		_, err := refresh(t.Context(), client, token)
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_REUSED)
	}
	invalid := func(t *testing.T, token string) {
		t.Helper()
		_, err := refresh(t.Context(), client, token)
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)
	}

	t.Run("RotatesWithinTheSession", func(t *testing.T) {
		t.Parallel()
		first := register(t, client, "anna").GetTokens()
		second, err := refresh(t.Context(), client, first.GetRefreshToken())
		require.NoError(t, err)
		require.NotEqual(t, first.GetRefreshToken(), second.GetRefreshToken())
		require.Equal(t, first.GetSessionId(), second.GetSessionId())
		claims, err := verifier(h).Verify(t.Context(), second.GetAccessToken())
		require.NoError(t, err)
		require.Equal(t, second.GetSessionId(), claims.SessionID.String())
	})
	t.Run("StoresNoToken", func(t *testing.T) {
		t.Parallel()
		tokens := register(t, client, "berta").GetTokens()
		var row string
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT session::text FROM session WHERE id = $1", tokens.GetSessionId()).Scan(&row))
		require.NotContains(t, row, tokens.GetRefreshToken())
	})
	t.Run("ManyAtOnceGetTheSameSuccessor", func(t *testing.T) {
		t.Parallel()
		first := register(t, client, "cleo").GetTokens()
		const many = 6
		got := make([]*authv1.Tokens, many)
		errs := make([]error, many)
		var group sync.WaitGroup
		for i := range many {
			group.Go(func() { got[i], errs[i] = refresh(t.Context(), client, first.GetRefreshToken()) })
		}
		group.Wait()
		for i := range many {
			require.NoError(t, errs[i])
			require.Equal(t, got[0].GetRefreshToken(), got[i].GetRefreshToken())
		}
		_, err := refresh(t.Context(), client, got[0].GetRefreshToken())
		require.NoError(t, err)
	})
	t.Run("GrandparentEndsTheSessionEvenAtOnce", func(t *testing.T) {
		t.Parallel()
		first := register(t, client, "doro").GetTokens()
		second, err := refresh(t.Context(), client, first.GetRefreshToken())
		require.NoError(t, err)
		third, err := refresh(t.Context(), client, second.GetRefreshToken())
		require.NoError(t, err)
		reused(t, first.GetRefreshToken())
		invalid(t, third.GetRefreshToken())
		invalid(t, first.GetRefreshToken())
		ev := h.Await("auth", "session.revoked", func(ev *eventv1.Event) bool { return ev.GetKey() == first.GetSessionId() })
		require.EqualValues(t, 1, ev.GetKeyVersion())
	})
	t.Run("OtherSessionsOfTheAccountGoOn", func(t *testing.T) {
		t.Parallel()
		phone := register(t, client, "emil").GetTokens()
		laptop, err := logIn(t.Context(), client, "emil", password)
		require.NoError(t, err)
		second, err := refresh(t.Context(), client, phone.GetRefreshToken())
		require.NoError(t, err)
		_, err = refresh(t.Context(), client, second.GetRefreshToken())
		require.NoError(t, err)
		reused(t, phone.GetRefreshToken())
		_, err = refresh(t.Context(), client, laptop.GetTokens().GetRefreshToken())
		require.NoError(t, err)
	})
	t.Run("InventionsChangeNothing", func(t *testing.T) {
		t.Parallel()
		tokens := register(t, client, "fritz").GetTokens()
		good := tokens.GetRefreshToken()
		// The session's id is in every access token; knowing it must not be enough to end the session.
		invalid(t, good[:40]+flip(good[40:41])+good[41:])
		invalid(t, "prt_"+strings.Repeat("A", 86))
		invalid(t, "0123456789abcdef")
		_, err := refresh(t.Context(), client, good)
		require.NoError(t, err)
	})
}

func TestRefreshInTime(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	first := register(t, client, "anna").GetTokens()
	second, err := refresh(t.Context(), client, first.GetRefreshToken())
	require.NoError(t, err)

	// A lost answer: the predecessor gives the same successor for ten seconds, counted from the rotation.
	h.Clock.Advance(refreshGrace - time.Millisecond)
	again, err := refresh(t.Context(), client, first.GetRefreshToken())
	require.NoError(t, err)
	require.Equal(t, second.GetRefreshToken(), again.GetRefreshToken())

	// Later it is a stolen one, and everything of the session is dead.
	h.Clock.Advance(time.Millisecond)
	_, err = refresh(t.Context(), client, first.GetRefreshToken())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_REUSED)
	_, err = refresh(t.Context(), client, second.GetRefreshToken())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)
	require.Len(t, h.Events("auth", "session.revoked"), 1)
}

func TestSessionsEnd(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	h, client := start(t)
	idle := register(t, client, "anna").GetTokens()
	used := register(t, client, "berta").GetTokens()
	require.Equal(t, h.Clock.Now().Add(30*day), used.GetSessionExpiresAt().AsTime())
	begin := h.Clock.Now()

	for range 3 {
		h.Clock.Advance(29 * day)
		var err error
		used, err = refresh(t.Context(), client, used.GetRefreshToken())
		require.NoError(t, err)
	}
	require.Equal(t, begin.Add(90*day), used.GetSessionExpiresAt().AsTime(), "the absolute end does not move")
	_, err := refresh(t.Context(), client, idle.GetRefreshToken())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)

	// The last access token does not outlive the session.
	h.Clock.Advance(3*day - 5*time.Minute)
	used, err = refresh(t.Context(), client, used.GetRefreshToken())
	require.NoError(t, err)
	require.Equal(t, begin.Add(90*day), used.GetAccessTokenExpiresAt().AsTime())
	h.Clock.Advance(5 * time.Minute)
	_, err = verifier(h).Verify(t.Context(), used.GetAccessToken())
	require.ErrorIs(t, err, token.ErrExpired)
	_, err = refresh(t.Context(), client, used.GetRefreshToken())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)
}

func TestLogOut(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	tokens := register(t, client, "anna").GetTokens()
	other, err := logIn(t.Context(), client, "anna", password)
	require.NoError(t, err)
	session := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Token(tokens.GetAccessToken())))
	_, err = session.LogOut(t.Context(), &authv1.LogOutRequest{})
	require.NoError(t, err)

	_, err = refresh(t.Context(), client, tokens.GetRefreshToken())
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID)
	_, err = refresh(t.Context(), client, other.GetTokens().GetRefreshToken())
	require.NoError(t, err, "another session goes on")

	ev := h.Await("auth", "session.revoked", nil)
	require.Equal(t, tokens.GetSessionId(), ev.GetKey())
	payload := &authv1.SessionRevoked{}
	require.NoError(t, ev.GetPayload().UnmarshalTo(payload))
	require.Equal(t, h.Clock.Now(), payload.GetRevokedAt().AsTime())

	// The access token dies with the session, here as everywhere, and a repetition tells nobody anything.
	require.Eventually(t, func() bool {
		_, err := session.LogOut(t.Context(), &authv1.LogOutRequest{})
		return rpc.ReasonOf(err) == errorv1.Reason_REASON_SESSION_REVOKED
	}, 2*time.Second, 5*time.Millisecond, "the revocation reaches the verifiers within two seconds")
	require.Len(t, h.Events("auth", "session.revoked"), 1)

	_, err = client.LogOut(t.Context(), &authv1.LogOutRequest{})
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
}

func storedPassword(t *testing.T, h *servicetest.Harness) string {
	t.Helper()
	var stored string
	require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT password_hash FROM account").Scan(&stored))
	return stored
}

// flip changes a letter of base64.
func flip(letter string) string {
	if letter == "A" {
		return "B"
	}
	return "A"
}

func TestEndedSessionsArePruned(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	out := register(t, client, "anna").GetTokens()
	register(t, client, "berta")
	_, err := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Token(out.GetAccessToken()))).LogOut(t.Context(), &authv1.LogOutRequest{})
	require.NoError(t, err)
	remain := func(want int) {
		t.Helper()
		require.Eventually(t, func() bool {
			var sessions int
			err := h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM session").Scan(&sessions)
			return err == nil && sessions == want
		}, 20*time.Second, 10*time.Millisecond, "the job prunes down to %d", want)
	}
	remain(2)
	h.Clock.Advance(25 * time.Hour)
	remain(1) // the one that was logged out
	h.Clock.Advance(91 * 24 * time.Hour)
	remain(0)
}
