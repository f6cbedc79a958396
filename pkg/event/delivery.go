package event

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// prolongEvery is how often the server is told that a message is still worked on.
const prolongEvery = ackWait / 4

// delivery is a message of the stream and how far its events are. Each of them is
// worked on by itself; with the last one the message is acknowledged, or asked for
// again if one of them is to be tried again: then the others come again as well,
// and find their effect.
type delivery struct {
	msg jetstream.Msg
	log *slog.Logger

	mu        sync.Mutex
	left      int           // events without an outcome
	again     bool          // one is to be tried again,
	wait      time.Duration // the first of them after so long
	prolonged time.Time
}

// done tells of an event that needs no other delivery.
func (d *delivery) done(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.outcome(ctx, 1)
}

// retry tells of events that are to be delivered again, after a while.
func (d *delivery) retry(ctx context.Context, events int, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.again || wait < d.wait {
		d.again, d.wait = true, wait
	}
	d.outcome(ctx, events)
}

// outcome answers the server when there is nothing left. If the answer is lost, the
// message comes again after ackWait.
func (d *delivery) outcome(ctx context.Context, events int) {
	d.left -= events
	var err error
	switch {
	case d.left > 0:
		if now := time.Now(); now.Sub(d.prolonged) > prolongEvery {
			d.prolonged = now
			err = d.msg.InProgress()
		}
	case d.again:
		err = d.msg.NakWithDelay(d.wait)
	default:
		err = d.msg.Ack()
	}
	if err != nil {
		d.log.DebugContext(ctx, "events come again: the server was not answered", "subject", d.msg.Subject(), "error", err)
	}
}
