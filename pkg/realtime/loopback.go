package realtime

import "sync"

// Loopback carries pushes from the services of a process to the gateway of the same
// process by a call, past the bus, for as long as that is all who can have any: nobody
// outside of the process has reached the bus. Only who runs the NATS server within the
// process knows that. Everywhere else there is none: a nil Loopback carries nothing.
//
// It ends once, for good. From then on pushes take the bus, the gateway subscribes
// there all who are connected, and then tells a Loss, since what was pushed in between
// is gone.
type Loopback struct {
	end   sync.Once
	ended chan struct{}

	mu         sync.RWMutex
	subscriber *Subscriber
}

// NewLoopback makes one, for New and SubscriberConfig.
func NewLoopback() *Loopback { return &Loopback{ended: make(chan struct{})} }

// End sends all pushes over the bus from now on. Call it before somebody outside can
// subscribe or publish: who subscribes after it and asks then for what is stored misses
// nothing.
func (l *Loopback) End() { l.end.Do(func() { close(l.ended) }) }

// done is closed by End; nil for a nil Loopback.
func (l *Loopback) done() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.ended
}

// open is whether pushes are carried.
func (l *Loopback) open() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

// attach makes the gateway's subscriber known. A process has one gateway.
func (l *Loopback) attach(s *Subscriber) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subscriber = s
}

// detach forgets it, and waits for what is being handed to it.
func (l *Loopback) detach() { l.attach(nil) }

// carry hands a push over by do; false: it has to take the bus.
func (l *Loopback) carry(do func(*Subscriber)) bool {
	if !l.open() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.subscriber == nil {
		return false
	}
	do(l.subscriber)
	return true
}
