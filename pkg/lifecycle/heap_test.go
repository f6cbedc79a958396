package lifecycle_test

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/lifecycle"
)

// The percent belongs to the process, so this is one test, one step after the other.
func TestTheRoomBetweenCollectionsDoesNotGrowWithTheHeap(t *testing.T) {
	t.Setenv("GOGC", "100")
	lifecycle.TuneCollector(t.Context())
	require.EqualValues(t, 100, percent(), "the environment says so")

	t.Setenv("GOGC", "")
	lifecycle.TuneCollector(t.Context())
	require.Greater(t, percent(), uint64(200), "a small heap gets more room than Go gives it")

	held := make([][]byte, 0, 400)
	for range cap(held) {
		held = append(held, make([]byte, 1<<20))
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return percent() <= 60
	}, 30*time.Second, 10*time.Millisecond, "a large heap gets less, but not nothing")
	runtime.KeepAlive(held)
	held = nil
	require.Eventually(t, func() bool {
		runtime.GC()
		return percent() > 200
	}, 30*time.Second, 10*time.Millisecond, "and back")
	require.Empty(t, held)

	held = append(held, make([]byte, 50<<20))
	second := func(megabytes int, is func(percent uint64) bool) func() bool {
		return func() bool {
			for range megabytes {
				held = append(held[:1], make([]byte, 1<<20))
			}
			runtime.GC()
			return is(percent())
		}
	}
	// The first try of each comes at once and so looks fast, the next ones are a second apart.
	require.Eventually(t, second(10, func(p uint64) bool { return p > 200 && p < 400 }), 30*time.Second, time.Second, "fifteen seconds of a calm pace")
	require.Eventually(t, second(80, func(p uint64) bool { return p > 100 && p < 200 }), 30*time.Second, time.Second, "one of a fast one")
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(240 << 20))
	require.Eventually(t, second(10, func(p uint64) bool { return p > 100 && p < 200 }), 30*time.Second, time.Second, "and as far as there is memory")
	runtime.KeepAlive(held)
}

func percent() uint64 {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
