package gateway

import "sync"

// tally counts open sockets, and knows when the last one is gone after no more
// may come.
type tally struct {
	mu     sync.Mutex
	count  int
	closed bool
	gone   chan struct{}
}

func newTally() *tally { return &tally{gone: make(chan struct{})} }

// enter counts a socket, unless no more may come.
func (t *tally) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.count++
	return true
}

func (t *tally) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count--
	if t.closed && t.count == 0 {
		close(t.gone)
	}
}

// shut lets nobody in any more; gone is closed when all have left. It is to be
// called once.
func (t *tally) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.count == 0 {
		close(t.gone)
	}
}
