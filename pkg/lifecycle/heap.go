package lifecycle

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
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

	// calmTime is how long a process is calm before it gives back the room that it
	// does not use; calm is to allocate less than calmBytes in it. Giving back costs
	// a collection, and less than spareBytes are not worth one.
	calmTime   = 10 * time.Second
	calmBytes  = heapRoom / 4
	spareBytes = heapRoom / 4
)

// TuneCollector makes the room between two garbage collections about the same
// whatever the process holds, instead of proportional to it, and gives that room
// back to the system while there is little to do, until ctx ends. GOGC in the
// environment, if set, stays the rule; GOMEMLIMIT holds in any case. Call it once
// per process.
func TuneCollector(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	t := &collectorTuner{held: samples("/gc/heap/live:bytes", "/gc/scan/stack:bytes", "/gc/scan/globals:bytes")}
	t.adjust()
	t.arm()
	go giveBack(ctx)
}

func samples(names ...string) []metrics.Sample {
	list := make([]metrics.Sample, len(names))
	for i, name := range names {
		list[i].Name = name
	}
	return list
}

// collectorTuner follows the size of the live heap. It runs after each collection,
// on the one goroutine of the runtime's cleanups.
type collectorTuner struct {
	held    []metrics.Sample // what GOGC is a percentage of
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
	metrics.Read(t.held)
	var held uint64
	for _, s := range t.held {
		held += s.Value.Uint64()
	}
	percent := min(max(int(heapRoom*100/max(held, 1)), leastPercent), mostPercent)
	// To set it stops the world for a moment: not for nothing.
	if diff := percent - t.percent; diff*10 > t.percent || diff*10 < -t.percent {
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}

// giveBack returns free memory to the system in calm times.
func giveBack(ctx context.Context) {
	ticker := time.NewTicker(calmTime)
	defer ticker.Stop()
	now := samples("/gc/heap/allocs:bytes", "/memory/classes/heap/free:bytes")
	var before uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		metrics.Read(now)
		allocated, free := now[0].Value.Uint64(), now[1].Value.Uint64()
		if allocated-before < calmBytes && free+garbage() > spareBytes {
			debug.FreeOSMemory()
		}
		before = allocated
	}
}

// garbage is about what a collection would find: what was allocated since the last.
func garbage() uint64 {
	now := samples("/memory/classes/heap/objects:bytes", "/gc/heap/live:bytes")
	metrics.Read(now)
	return now[0].Value.Uint64() - min(now[1].Value.Uint64(), now[0].Value.Uint64())
}
