package cache

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// clusterRetry is the pause between two tries to reach a cluster.
const clusterRetry = 500 * time.Millisecond

// openCluster returns the client of a Redis Cluster. rueidis makes none of a
// cluster whose nodes are all away; a service starts nevertheless.
func openCluster(opt rueidis.ClientOption) (rueidis.Client, error) {
	if opt.TLSConfig != nil {
		opt.TLSConfig.ServerName = "" // each node is known by its own name
	}
	client, err := rueidis.NewClient(opt)
	if err == nil {
		return client, nil
	}
	c, openErr := newConnecting(opt)
	if openErr != nil {
		return nil, openErr
	}
	return c, fmt.Errorf("%w: %w", ErrAway, err)
}

// connecting is the client of a cluster that could not be reached when it was
// opened. Until it can, commands go to the first address alone and fail.
type connecting struct {
	first   rueidis.Client
	cluster atomic.Pointer[rueidis.Client]
	stop    context.CancelFunc
	stopped chan struct{}
	closing sync.Once
}

func newConnecting(opt rueidis.ClientOption) (*connecting, error) {
	one := opt
	one.InitAddress, one.ForceSingleClient = opt.InitAddress[:1], true
	first, err := rueidis.NewClient(one)
	if first == nil {
		return nil, fmt.Errorf("open Redis: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // the client's own life, until Close
	c := &connecting{first: first, stop: stop, stopped: make(chan struct{})}
	go c.connect(ctx, opt)
	return c, nil
}

// connect tries until the cluster is there or the client is closed.
func (c *connecting) connect(ctx context.Context, opt rueidis.ClientOption) {
	defer close(c.stopped)
	tick := time.NewTicker(clusterRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if client, err := rueidis.NewClient(opt); err == nil {
			c.cluster.Store(&client)
			return
		}
	}
}

// now is the client for new commands.
func (c *connecting) now() rueidis.Client {
	if client := c.cluster.Load(); client != nil {
		return *client
	}
	return c.first
}

// noSlot marks commands that the builder of a single server's client has made.
const noSlot = 1 << 15

// of returns the client whose builder has made a command: the cluster may have
// come in between.
func (c *connecting) of(slot uint16) rueidis.Client {
	if client := c.cluster.Load(); client != nil && slot&noSlot == 0 {
		return *client
	}
	return c.first
}

// ofMany is of for a list; an empty one is nobody's.
func ofMany[T any](c *connecting, list []T, slot func(T) uint16) rueidis.Client {
	if len(list) == 0 {
		return c.now()
	}
	return c.of(slot(list[0]))
}

func slotOf(cmd rueidis.Completed) uint16 { return cmd.Slot() }

func slotOfCacheable(cmd rueidis.CacheableTTL) uint16 { return cmd.Cmd.Slot() }

func (c *connecting) B() rueidis.Builder { return c.now().B() }

func (c *connecting) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return c.of(cmd.Slot()).Do(ctx, cmd)
}

func (c *connecting) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	return ofMany(c, multi, slotOf).DoMulti(ctx, multi...)
}

func (c *connecting) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	return c.of(cmd.Slot()).DoCache(ctx, cmd, ttl)
}

func (c *connecting) DoMultiCache(ctx context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	return ofMany(c, multi, slotOfCacheable).DoMultiCache(ctx, multi...)
}

func (c *connecting) DoStream(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResultStream {
	return c.of(cmd.Slot()).DoStream(ctx, cmd)
}

func (c *connecting) DoMultiStream(ctx context.Context, multi ...rueidis.Completed) rueidis.MultiRedisResultStream {
	return ofMany(c, multi, slotOf).DoMultiStream(ctx, multi...)
}

func (c *connecting) Receive(ctx context.Context, subscribe rueidis.Completed, fn func(msg rueidis.PubSubMessage)) error {
	return c.of(subscribe.Slot()).Receive(ctx, subscribe, fn)
}

func (c *connecting) Dedicated(fn func(rueidis.DedicatedClient) error) error {
	return c.now().Dedicated(fn)
}

func (c *connecting) Dedicate() (rueidis.DedicatedClient, func()) { return c.now().Dedicate() }

func (c *connecting) Nodes() map[string]rueidis.Client { return c.now().Nodes() }

// Mode is a cluster's from the beginning: it is what a caller may send.
func (c *connecting) Mode() rueidis.ClientMode { return rueidis.ClientModeCluster }

// Close ends the client, and the tries.
func (c *connecting) Close() {
	c.closing.Do(func() {
		c.stop()
		<-c.stopped
		c.first.Close()
		if client := c.cluster.Load(); client != nil {
			(*client).Close()
		}
	})
}
