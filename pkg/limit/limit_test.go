package limit_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/limit"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testkit.OfClusterClients()...) }

var noon = time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, url string) rueidis.Client {
	t.Helper()
	c, err := cache.Open(url, "test")
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func newLimiter(t *testing.T, c rueidis.Client, clk clock.Clock, opts limit.Options) *limit.Limiter {
	t.Helper()
	l, err := limit.New(c, clk, testkit.Logger(t), opts)
	require.NoError(t, err)
	return l
}

func take(t *testing.T, l *limit.Limiter, key string, n int) limit.Decision {
	t.Helper()
	d, err := l.Take(t.Context(), key, n)
	require.NoError(t, err)
	return d
}

// Both counts, Redis's on every kind of server and the process's own, have the
// same rules.
func TestTake(t *testing.T) {
	t.Parallel()
	for name, redis := range map[string]func(t *testing.T) rueidis.Client{
		"Embedded": func(t *testing.T) rueidis.Client { return open(t, testkit.Redis(t)+"?protocol=2&client_cache=0") },
		"Redis":    func(t *testing.T) rueidis.Client { return open(t, testkit.PrivateRedis(t).URL) },
		"Cluster":  func(t *testing.T) rueidis.Client { return open(t, testkit.RedisCluster(t)) },
		"Alone":    func(*testing.T) rueidis.Client { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clk := clock.NewFake(noon)
			l := newLimiter(t, redis(t), clk, limit.Options{Name: "test", Burst: 3, Every: 10 * time.Second, Away: limit.Local})
			for left := 2; left >= 0; left-- {
				require.Equal(t, limit.Decision{Allowed: true, Left: left}, take(t, l, "a", 1))
			}
			require.Equal(t, limit.Decision{RetryAfter: 10 * time.Second}, take(t, l, "a", 1))
			require.Equal(t, limit.Decision{RetryAfter: 20 * time.Second}, take(t, l, "a", 2))
			require.True(t, take(t, l, "b", 3).Allowed, "another key has its own")
			clk.Advance(9999 * time.Millisecond)
			require.Equal(t, limit.Decision{RetryAfter: time.Millisecond}, take(t, l, "a", 1))
			clk.Advance(time.Millisecond)
			require.True(t, take(t, l, "a", 1).Allowed, "one is earned")
			require.False(t, take(t, l, "a", 1).Allowed)
			clk.Advance(time.Hour)
			require.Equal(t, limit.Decision{Allowed: true, Left: 0}, take(t, l, "a", 3), "no more than the burst is saved")
			// A replica's clock was an hour ahead: the others wait for an empty bucket at most.
			clk.Set(noon)
			require.Equal(t, limit.Decision{RetryAfter: 10 * time.Second}, take(t, l, "a", 1))

			long := strings.Repeat("k", 10_000)
			require.True(t, take(t, l, long+"1", 3).Allowed)
			require.True(t, take(t, l, long+"2", 3).Allowed, "long keys differ")
			for _, n := range []int{0, 4} {
				_, err := l.Take(t.Context(), "a", n)
				require.Error(t, err, "never allowed")
			}
		})
	}
}

// Replicas that ask at the same moment get together what the limit allows.
func TestAtomic(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"Redis": testkit.PrivateRedis(t).URL, "Embedded": testkit.Redis(t) + "?protocol=2&client_cache=0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clk := clock.NewFake(noon)
			var allowed [5]atomic.Int32
			var group sync.WaitGroup
			for range 4 {
				l := newLimiter(t, open(t, url), clk, limit.Options{Name: "test", Burst: 20, Every: time.Minute, Away: limit.Closed})
				for range 8 {
					group.Go(func() {
						for i := range 50 {
							if d, err := l.Take(t.Context(), fmt.Sprint(i%5), 1); err == nil && d.Allowed {
								allowed[i%5].Add(1)
							}
						}
					})
				}
			}
			group.Wait()
			for i := range allowed {
				require.EqualValues(t, 20, allowed[i].Load())
			}
		})
	}
}

func TestAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		away    limit.Away
		allowed int
		reason  errorv1.Reason
	}{
		"Local":  {limit.Local, 1, errorv1.Reason_REASON_RATE_LIMITED}, // two of the three were taken before
		"Open":   {limit.Open, 10, 0},
		"Closed": {limit.Closed, 0, errorv1.Reason_REASON_UNAVAILABLE},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.PrivateRedis(t)
			clk := clock.NewFake(noon)
			l := newLimiter(t, open(t, server.URL), clk, limit.Options{Name: "test", Burst: 3, Every: time.Minute, Away: c.away})
			for range 2 {
				require.NoError(t, l.Check(t.Context(), "a"))
			}
			server.Kill9()
			allowed := 0
			for range 10 {
				err := l.Check(t.Context(), "a")
				if err == nil {
					allowed++
					continue
				}
				require.Equal(t, c.reason, rpc.ReasonOf(err))
				require.Positive(t, rpc.InfoOf(err).GetRetryAfter().AsDuration())
			}
			require.Equal(t, c.allowed, allowed)
			server.Restart()
			tries := 0 // each with a key of its own: one whose answer got lost was counted
			require.Eventually(t, func() bool {
				tries++
				d := take(t, l, fmt.Sprint("again", tries), 1)
				return d.Left == 2 && !d.Unknown
			}, 30*time.Second, 10*time.Millisecond, "it is asked again")
		})
	}
}

func TestCheckTellsWhenToComeAgain(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, nil, clock.NewFake(noon), limit.Options{Name: "test", Burst: 1, Every: time.Minute, Away: limit.Local})
	require.NoError(t, l.Check(t.Context(), "a"))
	err := l.Check(t.Context(), "a")
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
	require.Equal(t, errorv1.Reason_REASON_RATE_LIMITED, rpc.ReasonOf(err))
	require.Equal(t, time.Minute, rpc.InfoOf(err).GetRetryAfter().AsDuration())
}

func TestAFloodOfKeysTakesNoMemory(t *testing.T) {
	t.Parallel()
	clk := clock.NewFake(noon)
	l := newLimiter(t, nil, clk, limit.Options{Name: "test", Burst: 1, Every: time.Minute, Away: limit.Local})
	for i := range 120_000 { // more than twice what is kept
		take(t, l, fmt.Sprint(i), 1)
	}
	require.False(t, take(t, l, "119999", 1).Allowed, "the newest is known")
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]limit.Options{
		"NoName": {Burst: 1, Every: time.Second, Away: limit.Local},
		"None":   {Name: "x", Every: time.Second, Away: limit.Local},
		"Never":  {Name: "x", Burst: 1, Away: limit.Local},
		"NoAway": {Name: "x", Burst: 1, Every: time.Second},
	} {
		_, err := limit.New(nil, clock.System(), testkit.Logger(t), opts)
		require.Error(t, err, name)
	}
}
