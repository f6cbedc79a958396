package lifecycle

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/parleychat/parley/pkg/clock"
)

const (
	// What may be allocated between two collections, in bytes. Go's own rule gives as
	// much room as there is live memory: little in a process that has just started to
	// work, which then collects ten times a second, and too much in a gateway that holds
	// the state of a hundred thousand silent sockets. Where memory is limited, the room
	// is at most a limitShare of the limit, as far as it is above the lower bound.
	heapRoom, mostRoom = 64 << 20, 256 << 20
	limitShare         = 3
	// A collection takes both CPUs of a small machine for 15 to 30 ms, and whatever is
	// under way waits as long. Where there is room they are collectEvery apart: one
	// meets two thousandths of the messages, and p99 does not see it. A process that
	// allocates too fast for that collects each collectFast. More room would not help it,
	// and cost more than itself: what stays, as when thousands connect, would lie
	// scattered among what goes, and pages of which a part is used are not given back.
	collectEvery, collectFast = 15 * time.Second, time.Second
	// leastPercent bounds the work of the collector where live memory is far larger
	// than the room, and mostPercent what a nearly empty heap may grow to.
	leastPercent, mostPercent = 50, 1600

	// calmTime is how long a process is calm before it gives back the room that it
	// does not use; calm is to allocate less than calmBytes in it. Giving back costs
	// a collection, and less than spareBytes are not worth one: for all that a gateway
	// holds it takes a CPU for as long as clients notice.
	calmTime   = time.Minute
	calmBytes  = heapRoom
	spareBytes = heapRoom / 4
)

// TuneCollector makes the room between two garbage collections follow what the
// process does, instead of what it holds, and gives that room back to the system
// while there is little to do, until ctx ends. GOGC in the
// environment, if set, stays the rule; GOMEMLIMIT holds in any case. Call it once
// per process.
func TuneCollector(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	t := &collectorTuner{
		live:      samples("/gc/heap/live:bytes", "/gc/scan/stack:bytes", "/gc/scan/globals:bytes"),
		allocated: samples("/gc/heap/allocs:bytes"),
		last:      collected{at: time.Now()},
	}
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

// collectorTuner follows the size of the live heap and the pace of allocation. It
// runs after each collection, on the one goroutine of the runtime's cleanups.
type collectorTuner struct {
	live      []metrics.Sample // what GOGC is a percentage of
	allocated []metrics.Sample
	last      collected
	percent   int
}

// collected is when a collection was, and what had been allocated by then.
type collected struct {
	allocated uint64 // since the start
	at        time.Time
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
	metrics.Read(t.live)
	metrics.Read(t.allocated)
	now := collected{allocated: t.allocated[0].Value.Uint64(), at: time.Now()}
	var live uint64
	for _, s := range t.live {
		live += s.Value.Uint64()
	}
	percent := min(max(int(room(t.last, now)*100/max(live, 1)), leastPercent), mostPercent)
	t.last = now
	// To set it stops the world for a moment: not for nothing.
	if diff := percent - t.percent; diff*10 > t.percent || diff*10 < -t.percent {
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}

// room is what may be allocated until the next collection, by what was since the last.
func room(last, now collected) uint64 {
	pace := float64(now.allocated-last.allocated) / max(now.at.Sub(last.at).Seconds(), 1e-3)
	limit := debug.SetMemoryLimit(-1) // only asks
	most := float64(max(min(mostRoom, limit/limitShare), heapRoom))
	wanted := pace * collectEvery.Seconds()
	if wanted > most {
		wanted = pace * collectFast.Seconds()
	}
	return uint64(min(max(wanted, heapRoom), most))
}

// giveBack returns free memory to the system in calm times. The processes of a machine
// that began together each look at a moment of their own.
func giveBack(ctx context.Context) {
	if !clock.Pause(ctx, rand.N(calmTime)) {
		return
	}
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
