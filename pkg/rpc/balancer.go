package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
)

// balancer spreads the calls to one service over its addresses in turn. It skips
// addresses that did not answer a dial, until their backoff has passed. It uses
// the machine's clock: it paces the network, not the product.
type balancer struct {
	service string
	targets []target
	cfg     RemoteConfig

	next  atomic.Uint64
	wake  chan struct{} // asks the resolver to look now
	stop  context.CancelFunc
	done  chan struct{} // the resolver has ended
	first chan struct{} // closed after the first look

	mu        sync.RWMutex
	endpoints []*endpoint
}

func newBalancer(service string, targets []target, cfg RemoteConfig) *balancer {
	// The resolver lives as long as the dialer, which has no context: Close ends it.
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // see above
	b := &balancer{
		service: service, targets: targets, cfg: cfg,
		wake: make(chan struct{}, 1), stop: stop, done: make(chan struct{}), first: make(chan struct{}),
	}
	go b.resolveLoop(ctx)
	return b
}

func (b *balancer) close() {
	b.stop()
	<-b.done
	b.mu.Lock()
	old := b.endpoints
	b.endpoints = nil
	b.mu.Unlock()
	for _, e := range old {
		e.retire()
	}
}

// RoundTrip sends a request to the next good address. If the dial fails nothing
// has been sent, so it tries one other address; after that moment it never sends
// a request twice.
func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-b.first:
	case <-r.Context().Done():
		closeBody(r)
		return nil, r.Context().Err() //nolint:wrapcheck // as a transport returns it
	}
	body := holdBody(r)
	e, again := b.pick(nil), true
	if e == nil {
		body.release()
		return nil, errAway(b.service, errNoEndpoint)
	}
	for {
		res, err := e.roundTrip(r, body)
		var dial *dialError
		if err == nil || !errors.As(err, &dial) {
			body.release()
			return res, err
		}
		b.lookNow()
		var other *endpoint
		if again && r.Context().Err() == nil && !body.touched() {
			other = b.pick(e) // perhaps one that was found only meanwhile
		}
		if other == nil {
			body.release()
			if ended := r.Context().Err(); ended != nil {
				return nil, ended //nolint:wrapcheck // as a transport returns it
			}
			return nil, errAway(b.service, err)
		}
		e, again = other, false
	}
}

// errAway has a code and no reason, so that a server whose handler passes it on
// logs it and tells its own caller nothing of our addresses.
func errAway(service string, cause error) error {
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("service %s cannot be reached: %w", service, cause))
}

// pick returns the next endpoint in turn that is up and is not the one just
// tried; if all are down, the next in turn anyway: one of them may be back. Calls
// that come meanwhile may fill every one that is up beyond what was found: then it
// is the one that had the fewest, never one that is down.
func (b *balancer) pick(not *endpoint) *endpoint {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := uint64(len(b.endpoints))
	if n == 0 {
		return nil
	}
	now := time.Now()
	start := b.next.Add(1)
	most, fallback := b.mostWaiting(not)
	for i := range n {
		e := b.endpoints[(start+i)%n]
		if e == not {
			continue
		}
		if e.waiting.Load() <= most && e.take(now) {
			return e
		}
		if fallback == nil {
			fallback = e
		}
	}
	return fallback
}

// mostWaiting is how many calls may wait at an endpoint before the others are
// preferred, and the endpoint that is up and has the fewest, nil if none is up. One
// that froze gets no more, long before the first of its calls has waited in vain.
// It is no balancing by load: whoever refuses quickly would get the most.
func (b *balancer) mostWaiting(not *endpoint) (most int64, idlest *endpoint) {
	const tolerated = 8
	least := int64(0)
	for _, e := range b.endpoints {
		if waiting := e.waiting.Load(); e != not && e.good() && (idlest == nil || waiting < least) {
			least, idlest = waiting, e
		}
	}
	return tolerated + 2*least, idlest
}

// lookNow asks the resolver for a look without waiting for it.
func (b *balancer) lookNow() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// heldBody keeps a request's body open over a failed dial: a transport closes
// the body of a request that it could not send. It knows whether a call waited for
// the body: that of a proxied call is sent by a stranger, who could otherwise have
// every endpoint put aside.
type heldBody struct {
	io.ReadCloser
	attempts atomic.Int32 // attempts that have not closed it yet
	released atomic.Bool
	closed   sync.Once

	mu      sync.Mutex
	reading int       // reads under way
	readAt  time.Time // when a read last ended; zero before the first one
	ended   bool      // read to its end
	failed  bool      // a read gave an error
}

func holdBody(r *http.Request) *heldBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	return &heldBody{ReadCloser: r.Body}
}

// attempt is the body of one attempt.
func (h *heldBody) attempt() io.ReadCloser {
	h.attempts.Add(1)
	return &bodyAttempt{held: h}
}

// release says that there will be no other attempt: the body closes with the
// last one that is still open.
func (h *heldBody) release() {
	if h == nil {
		return
	}
	h.released.Store(true)
	h.closeIfDone()
}

func (h *heldBody) closeIfDone() {
	if h.released.Load() && h.attempts.Load() == 0 {
		h.closed.Do(func() { _ = h.ReadCloser.Close() })
	}
}

// touched says whether some of the body may be gone.
func (h *heldBody) touched() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reading > 0 || !h.readAt.IsZero()
}

// unreadable says that a read of the body gave an error.
func (h *heldBody) unreadable() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

// late says that the rest of the body is waited for: it has no end yet, and the
// endpoint was taking it until a moment ago.
func (h *heldBody) late() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.ended && (h.reading > 0 || (!h.readAt.IsZero() && time.Since(h.readAt) < silence))
}

func (h *heldBody) began() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reading++
}

func (h *heldBody) got(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reading--
	h.readAt = time.Now()
	h.ended = h.ended || errors.Is(err, io.EOF)
	h.failed = h.failed || (err != nil && !errors.Is(err, io.EOF))
}

type bodyAttempt struct {
	held *heldBody
	once sync.Once
}

func (a *bodyAttempt) Read(p []byte) (int, error) {
	a.held.began()
	n, err := a.held.Read(p)
	a.held.got(err)
	return n, err //nolint:wrapcheck // io.EOF must stay bare
}

func (a *bodyAttempt) Close() error {
	a.once.Do(func() {
		a.held.attempts.Add(-1)
		a.held.closeIfDone()
	})
	return nil
}

// dialError marks a failure before anything was sent.
type dialError struct{ cause error }

func (d *dialError) Error() string { return fmt.Sprintf("connect: %v", d.cause) }
func (d *dialError) Unwrap() error { return d.cause }
