package auth

import (
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// TestAttempts runs the rules twice: in Redis by the script, and in memory.
func TestAttempts(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) rueidis.Client{
		"InRedis":  openRedis,
		"InMemory": func(*testing.T) rueidis.Client { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := open(t)
			fresh := func() (*attempts, *clock.Fake) {
				clk := clock.NewFake(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC))
				return newAttempts(redis, clk, slog.New(slog.DiscardHandler)), clk
			}
			testAttempts(t, fresh)
		})
	}
}

func testAttempts(t *testing.T, fresh func() (*attempts, *clock.Fake)) {
	t.Helper()
	try := func(t *testing.T, a *attempts, result attemptResult, subjects ...subject) error {
		t.Helper()
		attempt, err := a.begin(t.Context(), subjects...)
		if err == nil {
			attempt.settle(t.Context(), result)
		}
		return err
	}
	t.Run("RefusesAfterTheLimitUntilTheWindowEnds", func(t *testing.T) {
		t.Parallel()
		a, clk := fresh()
		anna := subject{key: t.Name(), limit: 5, forgiven: true}
		for range 5 {
			require.NoError(t, try(t, a, attemptFailed, anna))
			clk.Advance(time.Minute)
		}
		err := try(t, a, attemptFailed, anna)
		require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err))
		require.Equal(t, 10*time.Minute, rpc.InfoOf(err).GetRetryAfter().AsDuration())
		clk.Advance(10*time.Minute - time.Second)
		require.Error(t, try(t, a, attemptFailed, anna))
		clk.Advance(time.Second)
		require.NoError(t, try(t, a, attemptFailed, anna))
	})
	t.Run("SuccessForgivesTheAccountOnly", func(t *testing.T) {
		t.Parallel()
		a, _ := fresh()
		anna, home := subject{key: t.Name() + "anna", limit: 2, forgiven: true}, subject{key: t.Name() + "home", limit: 2}
		require.NoError(t, try(t, a, attemptFailed, anna, home))
		require.NoError(t, try(t, a, attemptSucceeded, anna, home))
		require.NoError(t, try(t, a, attemptFailed, anna))
		require.NoError(t, try(t, a, attemptFailed, home))
		require.Error(t, try(t, a, attemptFailed, home))
	})
	t.Run("VoidCountsForNothing", func(t *testing.T) {
		t.Parallel()
		a, _ := fresh()
		anna := subject{key: t.Name(), limit: 1, forgiven: true}
		for range 3 {
			require.NoError(t, try(t, a, attemptVoid, anna))
		}
	})
	t.Run("ARefusedOneGivesItsOtherPlacesBack", func(t *testing.T) {
		t.Parallel()
		a, _ := fresh()
		anna, home := subject{key: t.Name() + "anna", limit: 1}, subject{key: t.Name() + "home", limit: 1}
		require.NoError(t, try(t, a, attemptFailed, home))
		require.Error(t, try(t, a, attemptFailed, anna, home))
		require.NoError(t, try(t, a, attemptFailed, anna))
	})
	t.Run("GuessesAtTheSameMomentShareTheLimit", func(t *testing.T) {
		t.Parallel()
		a, _ := fresh()
		anna := subject{key: t.Name(), limit: 5, forgiven: true}
		var allowed, refused atomic.Int32
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				if attempt, err := a.begin(t.Context(), anna); err == nil {
					allowed.Add(1)
					attempt.settle(t.Context(), attemptFailed)
				} else {
					refused.Add(1)
				}
			})
		}
		group.Wait()
		require.EqualValues(t, 5, allowed.Load())
		require.EqualValues(t, 45, refused.Load())
	})
	t.Run("AttemptsUnderWayAskForAShortWait", func(t *testing.T) {
		t.Parallel()
		a, clk := fresh()
		anna := subject{key: t.Name(), limit: 1}
		_, err := a.begin(t.Context(), anna)
		require.NoError(t, err)
		err = try(t, a, attemptFailed, anna)
		require.Equal(t, busyRetryAfter, rpc.InfoOf(err).GetRetryAfter().AsDuration())
		// The first one's process died: its place is free again after the lease.
		clk.Advance(attemptLease)
		require.NoError(t, try(t, a, attemptFailed, anna))
	})
	t.Run("NoLimitIsNoLimit", func(t *testing.T) {
		t.Parallel()
		a, _ := fresh()
		for range 20 {
			require.NoError(t, try(t, a, attemptFailed, subject{key: t.Name()}))
		}
	})
}

func TestAttemptsWithoutRedis(t *testing.T) {
	t.Parallel()
	clk := clock.NewFake(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC))
	t.Run("GoOnInMemoryWhenRedisGoesAway", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateRedis(t)
		a := newAttempts(connectRedis(t, server.URL), clk, slog.Default())
		server.Stop()
		anna := subject{key: "anna", limit: 2}
		for range 2 {
			attempt, err := a.begin(t.Context(), anna)
			require.NoError(t, err)
			attempt.settle(t.Context(), attemptFailed)
		}
		_, err := a.begin(t.Context(), anna)
		require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err))
	})
	t.Run("KnowInMemoryWhatRedisCounted", func(t *testing.T) {
		t.Parallel()
		server := testkit.PrivateRedis(t)
		a := newAttempts(connectRedis(t, server.URL), clk, slog.Default())
		anna := subject{key: "anna", limit: 2}
		for range 2 {
			attempt, err := a.begin(t.Context(), anna)
			require.NoError(t, err)
			attempt.settle(t.Context(), attemptFailed)
		}
		server.Stop()
		_, err := a.begin(t.Context(), anna)
		require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err))
	})
	t.Run("MemoryIsBounded", func(t *testing.T) {
		t.Parallel()
		a := newAttempts(nil, clk, slog.New(slog.DiscardHandler))
		for i := range localSubjects + 100 {
			a.stepLocal(clk.Now(), subject{key: strconv.Itoa(i), limit: 5}, stepOpen, 0)
		}
		require.LessOrEqual(t, len(a.local), localSubjects)
		require.Less(t, len(a.local), localSubjects-localRoom+200, "room is made for many: each pass looks at all")
	})
	t.Run("PatienceWaitsForThoseUnderWay", func(t *testing.T) {
		t.Parallel()
		a := newAttempts(nil, clk, slog.New(slog.DiscardHandler))
		anna := subject{key: "anna", limit: 1}
		first, err := a.begin(t.Context(), anna)
		require.NoError(t, err)
		went := make(chan error)
		go func() {
			second, err := a.beginPatiently(t.Context(), anna)
			if err == nil {
				second.settle(t.Context(), attemptFailed)
			}
			went <- err
		}()
		first.settle(t.Context(), attemptVoid)
		require.NoError(t, <-went)
		_, err = a.beginPatiently(t.Context(), anna)
		require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err))
	})
}

// openRedis connects as pkg/cache does for a server that has neither RESP3 pub/sub nor tracking.
func openRedis(t *testing.T) rueidis.Client {
	t.Helper()
	return connectRedis(t, testkit.Redis(t))
}

func connectRedis(t *testing.T, url string) rueidis.Client {
	t.Helper()
	options, err := rueidis.ParseURL(url)
	require.NoError(t, err)
	options.DisableCache, options.AlwaysRESP2 = true, true
	client, err := rueidis.NewClient(options)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}
