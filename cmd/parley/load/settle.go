package load

import (
	"context"
	"time"

	"github.com/parleychat/parley/pkg/history"
)

// settleTime bounds the wait for the last answers and pushes.
const settleTime = 15 * time.Second

// settle waits until every message is answered and delivered, and counts what is not.
func (r *run) settle(ctx context.Context) error {
	defer func() {
		now := r.meter.now()
		for _, t := range r.allTalks() {
			t.giveUp(now)
		}
	}()
	deadline := time.Now().Add(settleTime)
	for time.Now().Before(deadline) {
		quiet := true
		for _, t := range r.allTalks() {
			if quiet = t.quiet(); !quiet {
				break
			}
		}
		if quiet {
			return nil
		}
		if err := sleepUntil(ctx, time.Now().Add(20*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil // the judge says what is missing for good
}

// giveUp ends the wait for the last answers and pushes. What has not come is counted with the time that it has taken so
// far: to leave it out would leave out the slowest.
func (t *talk) giveUp(now moment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.sends {
		t.giveUpLocked(&t.sends[i], now)
	}
	for _, d := range t.sides {
		for _, intended := range d.queue {
			t.run.meter.count(intended, func(c *Counts) { c.NeverSent++; c.Ack.add(time.Duration(now - intended)) })
		}
		d.queue = nil
	}
}

func (t *talk) giveUpLocked(m *sent, now moment) {
	took := time.Duration(now - m.intended)
	switch {
	case m.givenUp:
	case !m.settled:
		m.givenUp = true
		t.open--
		t.run.meter.count(m.intended, func(c *Counts) { c.Unknown++; c.Unanswered++; c.Ack.add(took) })
	case m.outcome == history.Acked && !m.delivered:
		m.givenUp = true
		t.undelivered--
		t.run.meter.count(m.intended, func(c *Counts) { c.Undelivered++; c.Delivery.add(took) })
	}
}
