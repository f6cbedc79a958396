package gateway

import (
	"sync/atomic"
	"time"
)

const (
	// workerRest is how long a worker waits for the next task before it ends.
	workerRest = 5 * time.Second
	// maxResting bounds the stacks that are kept, to some megabytes, after many
	// tasks at once.
	maxResting = 512
)

// task is what a worker does: a call, the opening of a socket, the writing to one.
type task interface{ run() }

// workers run tasks on goroutines that stay for a while. A task needs a deep
// stack; to grow a new one for each call was a twelfth of the gateway's CPU time.
type workers struct {
	tasks   chan task     // without a buffer: sent only to one who waits
	end     chan struct{} // closed when the gateway has ended
	resting atomic.Int32
}

func newWorkers() *workers {
	return &workers{tasks: make(chan task), end: make(chan struct{})}
}

// run performs a task in the background, by a worker who rests or a new one.
func (w *workers) run(t task) {
	select {
	case w.tasks <- t:
	default:
		go w.work(t)
	}
}

func (w *workers) work(t task) {
	rest := time.NewTimer(workerRest)
	defer rest.Stop()
	for t != nil {
		t.run()
		t = w.next(rest)
	}
}

// next waits for a task; nil when there is none for so long, or enough others
// wait.
func (w *workers) next(rest *time.Timer) task {
	defer w.resting.Add(-1)
	if w.resting.Add(1) > maxResting {
		return nil
	}
	rest.Reset(workerRest)
	select {
	case t := <-w.tasks:
		return t
	case <-rest.C:
		return nil
	case <-w.end:
		return nil
	}
}

// stop lets those who rest go; a task that runs is finished first.
func (w *workers) stop() { close(w.end) }
