package gateway

import (
	"runtime"
	"sync"
	"time"

	"github.com/parleychat/parley/pkg/realtime"
)

const (
	// writeChunk is how much is gathered for one system call.
	writeChunk = 16 << 10
	// maxSpareBuffer keeps the buffers of a few huge replies out of the pool.
	maxSpareBuffer = 128 << 10
	// itemOverhead is what an item costs in the queue beside its payload.
	itemOverhead = 64
)

// writeBuffers are borrowed only while something is written: an idle socket has
// none.
var writeBuffers = sync.Pool{New: func() any {
	buffer := make([]byte, 0, writeChunk)
	return &buffer
}}

// outgoing is a message that waits for its socket.
type outgoing struct {
	payload []byte // shared; never changed
	at      time.Time
	soft    *softKey         // of ephemera
	origin  *realtime.Origin // of sampled pushes
	opcode  byte
	kind    kind
}

// send queues a message and has it written. It never blocks. A socket whose
// queue is full is closed: it cannot be served, and a hole that nobody tells of
// would be worse than a reconnect.
func (c *connection) send(item outgoing) {
	if c.queueItem(item) {
		c.gw.workers.run((*flush)(c))
	}
}

// queueItem is send without the writing. If it says so, the caller has to flush.
func (c *connection) queueItem(item outgoing) (toFlush bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	size := len(item.payload) + itemOverhead
	limit := c.gw.cfg.Socket.QueueBytes
	if item.soft != nil {
		if c.supersedeLocked(item) {
			return false
		}
		if limit /= 2; c.queued+size > limit { // the other half is for what has to arrive
			c.missedLocked(item.kind, 1)
			return false
		}
	} else if c.queued+size > limit {
		c.dropSoftLocked()
	}
	// One message may be larger than the limit if it is alone.
	if c.queued > 0 && c.queued+size > limit {
		c.endLocked(closeSlow, comeBack(c.gw.spread(c.gw.cfg.Socket.SlowReconnect)), true)
		return false
	}
	return c.appendLocked(item, size)
}

// enqueueLocked queues what no bound may keep out, and has it written.
func (c *connection) enqueueLocked(item outgoing, size int) {
	if c.appendLocked(item, size) {
		c.gw.workers.run((*flush)(c))
	}
}

// appendLocked tells whether a flush has to be run: nobody writes to the socket.
func (c *connection) appendLocked(item outgoing, size int) (toFlush bool) {
	c.queue = append(c.queue, item)
	c.queued += size
	if c.flushing {
		return false
	}
	c.flushing = true
	c.flushSince = time.Now()
	c.gw.wheel.within(&c.entry, c.gw.cfg.Socket.WriteTimeout) // whoever else wakes it comes later
	return true
}

// flush is the task of a worker who empties a connection's queue.
type flush connection

func (f *flush) run() { (*connection)(f).flush() }

// flush writes until the queue is empty. There is at most one per socket, and
// none while it is idle.
//
// It lets the others run first: what they have for the same socket then leaves in
// one write.
func (c *connection) flush() {
	runtime.Gosched()
	pooled, _ := writeBuffers.Get().(*[]byte)
	buffer := (*pooled)[:0]
	var failed bool
	for {
		c.mu.Lock()
		batch := c.queue
		c.queue = nil
		if len(batch) == 0 || failed {
			c.flushing = false
			last := failed || c.finished
			c.mu.Unlock()
			if last {
				c.cut()
			}
			break
		}
		c.flushSince = time.Now()
		c.mu.Unlock()

		buffer, failed = c.writeBatch(batch, buffer)
		var size int
		for i := range batch {
			size += len(batch[i].payload) + itemOverhead
		}
		c.mu.Lock()
		c.queued -= size
		c.mu.Unlock()
	}
	if cap(buffer) <= maxSpareBuffer {
		*pooled = buffer[:0]
		writeBuffers.Put(pooled)
	}
}

// writeBatch gathers small messages into few writes. On an error the socket is
// lost: the reader will notice.
func (c *connection) writeBatch(batch []outgoing, buffer []byte) (_ []byte, failed bool) {
	conn := c.ws.NetConn()
	buffer = buffer[:0]
	for i := range batch {
		buffer = appendMessage(buffer, batch[i].opcode, batch[i].payload)
		if len(buffer) < writeChunk && i < len(batch)-1 {
			continue
		}
		if _, err := conn.Write(buffer); err != nil {
			return buffer, true
		}
		buffer = buffer[:0]
	}
	c.count(batch)
	return buffer, false
}

func (c *connection) count(batch []outgoing) {
	var numbers [kinds]int64
	var oldest time.Time
	for i := range batch {
		numbers[batch[i].kind]++
		if batch[i].origin != nil {
			c.gw.delivered(&batch[i])
		}
		if at := batch[i].at; !at.IsZero() && (oldest.IsZero() || at.Before(oldest)) {
			oldest = at
		}
	}
	for k, n := range numbers {
		if n > 0 {
			c.gw.metrics.out[k].Add(n)
		}
	}
	if !oldest.IsZero() {
		c.gw.metrics.delivery.Record(c.gw.base, time.Since(oldest).Seconds())
	}
}
