package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// calls counts the running calls, so that a drain can wait for the last one.
type calls struct {
	mu       sync.Mutex
	running  int
	draining bool
	idle     chan struct{} // closed when draining and nothing runs
}

func (c *calls) init() { c.idle = make(chan struct{}) }

// begin counts a call in; false if no new ones are taken.
func (c *calls) begin() (end func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return nil, false
	}
	c.running++
	return c.end, true
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if c.draining && c.running == 0 {
		close(c.idle)
	}
}

func (c *calls) drain(ctx context.Context) error {
	c.mu.Lock()
	if !c.draining {
		c.draining = true
		if c.running == 0 {
			close(c.idle)
		}
	}
	c.mu.Unlock()
	select {
	case <-c.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain RPC: calls are still running: %w", ctx.Err())
	}
}

func errDrained() *connect.Error {
	return WithRetryAfter(Error(connect.CodeUnavailable, errorv1.Reason_REASON_OVERLOADED,
		"this server is shutting down"), time.Second)
}
