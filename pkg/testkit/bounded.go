package testkit

import (
	"runtime"
	"testing"
	"time"
)

// decodeTime is far more than any decoder takes, also on a busy machine under the
// race detector: what takes longer has lost its bound.
const decodeTime = 5 * time.Second

// Bounded runs fn and fails the test if it took seconds or allocated more than
// most bytes. It is for decoders, whose cost must follow from the size of what
// they are given. Nothing else should run meanwhile: the whole process is
// measured.
func Bounded(t testing.TB, most uint64, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	fn()
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > most {
		t.Fatalf("allocated %d bytes, more than %d", used, most)
	}
	if took > decodeTime {
		t.Fatalf("took %s", took)
	}
}
