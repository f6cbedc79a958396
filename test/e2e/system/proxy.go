package system

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
)

// Proxy is a network between two processes that a test can break. It forwards
// TCP to one address.
type Proxy struct {
	// Addr is where it listens, host:port.
	Addr string

	target string
	listen net.Listener
	life   context.Context //nolint:containedctx // the proxy's own goroutines end with the test
	done   sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	flow  chan struct{} // nil, or open as long as nothing goes through
	pairs map[*pair]bool
}

// pair is one forwarded connection.
type pair struct{ near, far net.Conn }

func (p *pair) close() {
	_, _ = p.near.Close(), p.far.Close() // being broken is their purpose
}

// NewProxy starts a proxy to target, host:port. It ends after the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a proxy: %v", err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, listen: l, life: t.Context(), pairs: map[*pair]bool{}}
	p.done.Add(1)
	go p.accept()
	t.Cleanup(func() {
		_ = l.Close() // ends accept
		p.Cut()
		p.done.Wait()
	})
	return p
}

// Cut breaks all connections and every new one, until Heal.
func (p *Proxy) Cut() { p.set(true) }

// Hang lets nothing through and breaks nothing, until Heal: what is sent waits,
// in both directions, and new connections are not answered, as when a cable is
// pulled out.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flow == nil {
		p.flow = make(chan struct{})
	}
}

// Heal lets connections through again.
func (p *Proxy) Heal() { p.set(false) }

// Drop breaks all connections; new ones go through.
func (p *Proxy) Drop() {
	p.Cut()
	p.Heal()
}

func (p *Proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if p.flow != nil {
		close(p.flow)
		p.flow = nil
	}
	if !cut {
		return
	}
	for c := range p.pairs {
		c.close()
	}
}

func (p *Proxy) accept() {
	defer p.done.Done()
	for {
		near, err := p.listen.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p.done.Add(1)
		go p.forward(near)
	}
}

func (p *Proxy) forward(near net.Conn) {
	defer p.done.Done()
	if !p.pass() {
		_ = near.Close()
		return
	}
	var dialer net.Dialer
	far, err := dialer.DialContext(p.life, "tcp", p.target)
	if err != nil {
		_ = near.Close()
		return
	}
	c := &pair{near, far}
	defer c.close()
	if !p.add(c) {
		return
	}
	defer p.remove(c)
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer c.close() // one end is the end of both
		p.copy(near, far)
	}()
	p.copy(far, near)
	c.close()
	<-back
}

// copy passes bytes on until either end is closed.
func (p *Proxy) copy(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !p.pass() {
				return
			}
			if _, werr := to.Write(buffer[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits while the proxy hangs; false says that the test has ended.
func (p *Proxy) pass() bool {
	p.mu.Lock()
	flow := p.flow
	p.mu.Unlock()
	if flow == nil {
		return true
	}
	select {
	case <-flow:
		return true
	case <-p.life.Done():
		return false
	}
}

func (p *Proxy) add(c *pair) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.pairs[c] = true
	return true
}

func (p *Proxy) remove(c *pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, c)
}
