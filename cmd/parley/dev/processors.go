package dev

import (
	"os"
	"runtime"
)

// shareProcessors has Go run on half as many processors more than there are. The
// database, the kernel and often the clients work on the same CPUs here. When they take
// one away from a thread, the goroutines in its queue wait with it, though another CPU
// may be idle; with one processor to spare another thread goes on. At 500 messages/s on
// two CPUs the p99 of deliveries was 3.7 ms instead of 4.6 (docs/performance.md).
// With a single CPU there is no idle one, and a second thread only takes turns with the
// first: in an overload a tenth of the messages less.
// Programs of one service keep Go's own choice, which heeds their share of the machine,
// and so does whoever sets GOMAXPROCS.
func shareProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(withSpare(runtime.GOMAXPROCS(0)))
	}
}

func withSpare(processors int) int { return processors + processors/2 }
