package lifecycle

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapRoom is what may be allocated between two collections, in bytes. Go's own
	// rule gives as much room as there is live memory: little in a process that has
	// just started to work, which then collects ten times a second, and too much in a
	// gateway that holds the state of a hundred thousand silent sockets.
	heapRoom = 64 << 20
	// leastPercent bounds the work of the collector where live memory is far larger
	// than the room, and mostPercent what a nearly empty heap may grow to.
	leastPercent, mostPercent = 50, 800
)

// TuneCollector makes the room between two garbage collections about the same
// whatever the process holds, instead of proportional to it. GOGC in the
// environment, if set, stays the rule; GOMEMLIMIT holds in any case. Call it once
// per process.
func TuneCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	t := &collectorTuner{samples: []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}}
	t.adjust()
	t.arm()
}

// collectorTuner follows the size of the live heap. It runs after each collection,
// on the one goroutine of the runtime's cleanups.
type collectorTuner struct {
	samples []metrics.Sample
	percent int
}

// arm has adjust called after the next collection, by an object that nobody holds.
func (t *collectorTuner) arm() {
	sentinel := new([16]byte)
	runtime.AddCleanup(sentinel, func(t *collectorTuner) {
		t.adjust()
		t.arm()
	}, t)
}

func (t *collectorTuner) adjust() {
	metrics.Read(t.samples)
	var base uint64
	for _, s := range t.samples {
		base += s.Value.Uint64()
	}
	percent := min(max(int(heapRoom*100/max(base, 1)), leastPercent), mostPercent)
	// To set it stops the world for a moment: not for nothing.
	if diff := percent - t.percent; diff*10 > t.percent || diff*10 < -t.percent {
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}
