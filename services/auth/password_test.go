package auth

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// newTestPasswords hashes at bcrypt's lowest cost.
func newTestPasswords(t *testing.T, places int) *passwords {
	t.Helper()
	p, err := newPasswords([]byte(strings.Repeat("p", 32)), bcrypt.MinCost, places, newBreached(t, ""))
	require.NoError(t, err)
	return p
}

func TestPasswordHash(t *testing.T) {
	t.Parallel()
	p := newTestPasswords(t, 2)
	same := func(t *testing.T, registered, tried string) bool {
		t.Helper()
		stored, err := p.hash(t.Context(), registered)
		require.NoError(t, err)
		ok, err := p.matches(t.Context(), stored, tried)
		require.NoError(t, err)
		return ok
	}
	for name, c := range map[string]struct {
		registered, tried string
		want              bool
	}{
		"Same":                      {"correct horse", "correct horse", true},
		"OtherCase":                 {"correct horse", "Correct horse", false},
		"DiffersAtByte73":           {strings.Repeat("a", 72) + "x", strings.Repeat("a", 72) + "y", false},
		"DiffersAtTheLastOf256":     {strings.Repeat("é", 255) + "x", strings.Repeat("é", 255) + "y", false},
		"DiffersAfterNUL":           {"secret\x00one", "secret\x00two", false},
		"Long":                      {strings.Repeat("long ", 50), strings.Repeat("long ", 50), true},
		"Emoji":                     {"🦜🦜🦜🦜🦜🦜🦜🦜", "🦜🦜🦜🦜🦜🦜🦜🦜", true},
		"ComposedEqualsDecomposed":  {"caf\u00e9 au lait", "cafe\u0301 au lait", true},
		"LookAlikesAreNotTheSame":   {"раssword-one", "password-one", false},
		"TrailingSpaceIsPartOfIt":   {"correct horse ", "correct horse", false},
		"NothingNeverMatchesHashed": {"correct horse", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, same(t, c.registered, c.tried))
		})
	}

	t.Run("NoAccountNeverMatches", func(t *testing.T) {
		t.Parallel()
		ok, err := p.matches(t.Context(), "", "whatever it is")
		require.NoError(t, err)
		require.False(t, ok)
	})
	t.Run("DecoyCostsTheSame", func(t *testing.T) {
		t.Parallel()
		require.False(t, p.outdated(p.decoy))
	})
	t.Run("UnknownFormIsAnError", func(t *testing.T) {
		t.Parallel()
		_, err := p.matches(t.Context(), "$2a$04$something of another release", "x")
		require.Error(t, err)
	})
	t.Run("AnotherPepperNeverMatches", func(t *testing.T) {
		t.Parallel()
		stored, err := p.hash(t.Context(), "correct horse")
		require.NoError(t, err)
		other, err := newPasswords([]byte(strings.Repeat("q", 32)), bcrypt.MinCost, 1, newBreached(t, ""))
		require.NoError(t, err)
		ok, err := other.matches(t.Context(), stored, "correct horse")
		require.NoError(t, err)
		require.False(t, ok)
	})
}

func TestHashingIsBounded(t *testing.T) {
	t.Parallel()
	p := newTestPasswords(t, 1)
	leave, err := p.enter(t.Context())
	require.NoError(t, err)
	defer leave()
	// One more waits in each place of the queue; nobody gets in while the place is taken.
	left := make(chan error, hashQueue)
	for range hashQueue {
		go func() {
			_, err := p.enter(t.Context())
			left <- err
		}()
	}
	require.Eventually(t, func() bool { return p.waiting.Load() == hashQueue }, 2*time.Second, time.Millisecond, "the queue fills")

	_, err = p.enter(t.Context())
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	require.Equal(t, errorv1.Reason_REASON_OVERLOADED, rpc.ReasonOf(err))
	require.Positive(t, rpc.InfoOf(err).GetRetryAfter().AsDuration())
	for range hashQueue {
		require.Equal(t, errorv1.Reason_REASON_OVERLOADED, rpc.ReasonOf(<-left), "patience ends before the client's")
	}
}

func TestWeakPasswords(t *testing.T) {
	t.Parallel()
	p := newTestPasswords(t, 1)
	for _, weak := range []string{
		"password", "Password1", "QWERTYUIOP", "12345678", "iloveyou", "aaaaaaaaaaaa", "anna.meier", "Anna.Meier@example.org", "annas-address",
	} {
		err := p.refuseWeak(weak, "anna.meier", "anna.meier@example.org")
		if err == nil {
			err = p.refuseWeak(weak, "x", "annas-address@example.org")
		}
		require.Equal(t, errorv1.Reason_REASON_PASSWORD_WEAK, rpc.ReasonOf(err), weak)
	}
	for _, fine := range []string{"tr0mbone-lantern", "anna.meier's cat", "aaaaaaab", "ひみつのことばです"} {
		require.NoError(t, p.refuseWeak(fine, "anna.meier", "anna.meier@example.org"), fine)
	}
}

// newBreached opens the built-in lists and perhaps a file.
func newBreached(t *testing.T, path string) breached {
	t.Helper()
	known, err := openBreached(path)
	require.NoError(t, err)
	return known
}
