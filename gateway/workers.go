package gateway

import (
	"sync/atomic"
	"time"
)

const (
	// workerRest is how long a worker waits for the next call before it ends.
	workerRest = 5 * time.Second
	// maxResting bounds the stacks that are kept, to some megabytes, after many
	// calls at once.
	maxResting = 512
)

// workers run calls on goroutines that stay for a while. A call needs a deep
// stack; to grow a new one for each was a twelfth of the gateway's CPU time.
type workers struct {
	calls   chan *pending // without a buffer: sent only to one who waits
	end     chan struct{} // closed when the gateway has ended
	resting atomic.Int32
}

func newWorkers() *workers {
	return &workers{calls: make(chan *pending), end: make(chan struct{})}
}

// run performs a call in the background, by a worker who rests or a new one.
func (w *workers) run(p *pending) {
	select {
	case w.calls <- p:
	default:
		go w.work(p)
	}
}

func (w *workers) work(p *pending) {
	rest := time.NewTimer(workerRest)
	defer rest.Stop()
	for p != nil {
		p.run()
		p = w.next(rest)
	}
}

// next waits for a call; nil when there is none for so long, or enough others
// wait.
func (w *workers) next(rest *time.Timer) *pending {
	defer w.resting.Add(-1)
	if w.resting.Add(1) > maxResting {
		return nil
	}
	rest.Reset(workerRest)
	select {
	case p := <-w.calls:
		return p
	case <-rest.C:
		return nil
	case <-w.end:
		return nil
	}
}

// stop lets those who rest go; a call that runs is finished first.
func (w *workers) stop() { close(w.end) }
