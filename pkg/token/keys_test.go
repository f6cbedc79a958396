package token_test

import (
	"crypto/ed25519"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/token"
)

// keyServer serves a JWK set as auth does.
type keyServer struct {
	*httptest.Server
	mu    sync.Mutex
	keys  map[string]ed25519.PublicKey
	down  atomic.Bool
	asked atomic.Int32
}

func newKeyServer(t *testing.T) *keyServer {
	t.Helper()
	s := &keyServer{keys: make(map[string]ed25519.PublicKey)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked.Add(1)
		if s.down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		data, err := token.MarshalKeySet(s.keys)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) set(keys ...ed25519.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.keys)
	for _, k := range keys {
		s.keys[token.KeyID(k)] = k
	}
}

func TestRemoteKeysFollowARotation(t *testing.T) {
	t.Parallel()
	k, srv := newKit(t), newKeyServer(t)
	srv.set(k.public)
	keys := token.RemoteKeys(srv.Client(), srv.URL, k.clock)
	verifier := token.NewVerifier(keys, k.revoked, k.clock, issuer, audience)
	verify := func(raw string) error {
		_, err := verifier.Verify(t.Context(), raw)
		return err
	}
	old := k.sign(t, k.claims())
	require.NoError(t, verify(old))
	require.NoError(t, verify(k.sign(t, k.claims())))
	require.EqualValues(t, 1, srv.asked.Load(), "the set is kept")

	nextPublic, next := newKey(t)
	raw, err := token.SignAccess(next, k.claims(), issuer, audience)
	require.NoError(t, err)
	srv.set(k.public, nextPublic)
	require.Eventually(t, func() bool { return verify(raw) == nil }, 5*time.Second, 20*time.Millisecond,
		"an unknown key id makes it look again")
	require.NoError(t, verify(old))

	srv.set(nextPublic)
	k.clock.Advance(6 * time.Minute)
	require.Eventually(t, func() bool {
		fresh, err := token.SignAccess(next, k.claims(), issuer, audience)
		require.NoError(t, err)
		require.NoError(t, verify(fresh), "a known key does not wait for the set")
		return verify(old) != nil
	}, 5*time.Second, 20*time.Millisecond, "a withdrawn key takes its remembered tokens with it")
	require.ErrorIs(t, verify(old), token.ErrInvalid)
}

func TestRemoteKeysSurviveTheAbsenceOfAuth(t *testing.T) {
	t.Parallel()
	k, srv := newKit(t), newKeyServer(t)
	srv.set(k.public)
	srv.down.Store(true)
	keys := token.RemoteKeys(srv.Client(), srv.URL, k.clock)
	verifier := token.NewVerifier(keys, k.revoked, k.clock, issuer, audience)
	_, err := verifier.Verify(t.Context(), k.sign(t, k.claims()))
	require.ErrorIs(t, err, token.ErrUnavailable, "never fetched")
	require.Error(t, keys.Fetch(t.Context()))

	srv.down.Store(false)
	require.Eventually(t, func() bool { return keys.Fetch(t.Context()) == nil }, 5*time.Second, 20*time.Millisecond)
	_, err = verifier.Verify(t.Context(), k.sign(t, k.claims()))
	require.NoError(t, err)

	srv.down.Store(true)
	k.clock.Advance(time.Hour)
	_, err = verifier.Verify(t.Context(), k.sign(t, k.claims()))
	require.NoError(t, err, "the old set stays good")
}

func TestMadeUpKeyIDsDoNotFloodAuth(t *testing.T) {
	t.Parallel()
	k, srv := newKit(t), newKeyServer(t)
	srv.set(k.public)
	keys := token.RemoteKeys(srv.Client(), srv.URL, k.clock)
	began := time.Now()
	for range 200 {
		_, err := keys.Key(t.Context(), "made up")
		require.ErrorIs(t, err, token.ErrInvalid)
	}
	require.LessOrEqual(t, float64(srv.asked.Load()), 1+time.Since(began).Seconds())
}

func TestParseKeySetTakesOnlyEd25519(t *testing.T) {
	t.Parallel()
	for _, set := range []string{``, `{}`, `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA","kid":"x"}]}`} {
		_, err := token.ParseKeySet([]byte(set))
		require.Error(t, err, set)
	}
}
