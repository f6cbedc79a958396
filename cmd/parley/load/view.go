package load

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/history"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// eventsPage is how many entries one ListEvents asks for, the most it gives.
const eventsPage = 200

// hash is history.Hash of a text that is no string yet.
func hash(text []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(text) // never fails
	return h.Sum64()
}

// pushed takes a pushed entry into what a side has. On the socket's reader.
func (t *talk) pushed(s *socket, e *entry, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.sideOf(s)
	if i < 0 {
		return
	}
	t.takeLocked(i, e, now, true)
	if d := t.sides[i]; len(d.aside) > 0 && !d.repairing {
		t.repairLocked(i)
	}
}

func (t *talk) sideOf(s *socket) int {
	for i, d := range t.sides {
		if d.socket == s {
			return i
		}
	}
	return -1
}

// takeLocked accepts an entry in its turn, keeps one aside that comes early and
// ignores one that is known, as section 6 of docs/protocol.md says.
func (t *talk) takeLocked(i int, e *entry, now time.Time, push bool) {
	d, r := t.sides[i], t.run
	seq := e.seq - t.base
	counter, ours := uint32(0), false
	if id, err := parseUUID(e.client); err == nil {
		counter, ours = t.counterOf(id)
	}
	switch {
	case seq < d.next:
		if push {
			r.meter.note(func(c *Counts) { c.Doubled++ })
		}
		t.compareLocked(d, seq, e)
		return
	case seq > d.next:
		if d.aside == nil {
			d.aside = map[int64]history.Entry{}
		}
		d.aside[seq] = t.toHistory(e)
		if push {
			r.meter.note(func(c *Counts) { c.Holes++ })
			t.deliveredLocked(i, counter, ours, now, true)
		}
		return
	}
	if !ours {
		t.acceptOddLocked(d, t.toHistory(e))
	} else {
		t.acceptLocked(d, seen{
			at: e.at, content: hash(e.text), seq: uint32(seq), ordinal: uint32(e.ordinal - t.baseOrdinal),
			counter: counter, sender: t.senderOf(e.sender),
		})
		t.deliveredLocked(i, counter, ours, now, push)
	}
	for {
		next, ok := d.aside[d.next]
		if !ok {
			return
		}
		delete(d.aside, d.next)
		t.acceptOddLocked(d, next)
	}
}

// compareLocked has the judge see an entry that comes again with other content, though a client shows none twice.
func (t *talk) compareLocked(d *side, seq int64, e *entry) {
	if !t.run.keep || seq < 1 || int(seq) > len(d.seen) {
		return
	}
	if known := d.seen[seq-1]; int64(known.seq) == seq && known.content != hash(e.text) {
		t.acceptOddLocked(d, t.toHistory(e))
		d.next-- // it is the same place
	}
}

// acceptLocked shows an entry: from now on the side has it.
func (t *talk) acceptLocked(d *side, s seen) {
	d.next++
	if t.run.plant.forget != nil && t.run.plant.forget(d.next-1) {
		return
	}
	if t.run.keep {
		d.seen = append(d.seen, s)
	}
}

// acceptOddLocked shows an entry that came early or from somebody else, kept whole.
func (t *talk) acceptOddLocked(d *side, e history.Entry) {
	if t.run.keep {
		if d.odd == nil {
			d.odd = map[int]history.Entry{}
		}
		d.odd[len(d.seen)] = e
		d.seen = append(d.seen, seen{})
	}
	d.next++
}

// deliveredLocked counts a message that reached the other side, once.
func (t *talk) deliveredLocked(i int, counter uint32, ours bool, now time.Time, push bool) {
	if !ours {
		return
	}
	m := t.message(counter)
	if int(m.sender) == i || m.delivered {
		return
	}
	m.delivered = true
	if m.outcome == history.Acked && !m.givenUp {
		t.undelivered--
	}
	t.countDelivery(m, t.run.meter.at(now), push)
	if counter+1 == t.first+uint32(len(t.sends)) {
		t.waiting &^= waitDelivery
		t.advanceLocked()
	}
}

// countDelivery counts a message that reached the other side, with the time it took, by whatever way it came: those that
// had to be repaired are the slow ones.
func (t *talk) countDelivery(m *sent, now moment, push bool) {
	took, waited := time.Duration(now-m.intended), !m.givenUp || m.outcome != history.Acked
	fn := func(c *Counts) {
		if push {
			c.Delivered++
		} else {
			c.Missed++
		}
		if waited {
			c.Delivery.add(took)
		}
	}
	if !push {
		t.run.meter.count(m.intended, fn)
		return
	}
	t.run.meter.arrived(m.intended, now, fn, func(c *Counts) { c.DeliveredIn++ })
}

func (t *talk) senderOf(id []byte) uint8 {
	for i, d := range t.sides {
		if d.id == string(id) {
			return uint8(i)
		}
	}
	return 2 // nobody
}

func (t *talk) toHistory(e *entry) history.Entry {
	return history.Entry{
		Seq: e.seq - t.base, Ordinal: e.ordinal - t.baseOrdinal, Sender: string(e.sender), ClientID: string(e.client),
		Content: hash(e.text), At: e.at, Message: e.message,
	}
}

// repairLocked asks for what a side does not have, by its own connection, once at a
// time. The answer is taken on the reader.
func (t *talk) repairLocked(i int) {
	d := t.sides[i]
	if d.socket == nil || d.repairing {
		return
	}
	request, err := proto.Marshal(&messagingv1.ListEventsRequest{ConversationId: t.id, AfterSeq: t.base + d.next - 1, Limit: eventsPage})
	if err != nil {
		return // a message of scalars can be encoded
	}
	d.repairing = true
	socket := d.socket
	fn := func(f *frame, err error) { t.repaired(i, socket, f, err) }
	err = socket.begin(pending{fn: fn}, func(w *writer, id uint32) []byte { return w.callFrame(id, procedureEvents, "", request) })
	if err != nil {
		d.repairing = false
	}
}

func (t *talk) repaired(i int, from *socket, f *frame, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.sides[i]
	if d.socket != from {
		return // a newer connection repairs by itself
	}
	d.repairing = false
	more := false
	if err == nil && f.kind == kindError {
		err = decodeFault(f.body)
	}
	if err == nil {
		more, err = t.takePageLocked(i, f.body)
	}
	if err != nil {
		t.run.meter.fail(t.run.meter.now(), err) // the keeper tries again
		return
	}
	if more || len(d.aside) > 0 {
		t.repairLocked(i)
	}
}

// takePageLocked takes a ListEventsResponse.
func (t *talk) takePageLocked(i int, body []byte) (more bool, err error) {
	now := time.Now()
	err = eachEntry(body, &more, func(e *entry) { t.takeLocked(i, e, now, false) })
	return more, err
}

// catchUp repairs a side until it has everything, after the load.
func (t *talk) catchUp(ctx context.Context, i int) error {
	t.mu.Lock()
	after := t.sides[i].next - 1
	t.mu.Unlock()
	return t.pages(ctx, i, after, func(e *entry) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.takeLocked(i, e, time.Now(), false)
	})
}

// readLog reads the conversation from the base to its end, as one side.
func (t *talk) readLog(ctx context.Context, i int) (history.Log, error) {
	log := history.Log{Conversation: t.id, Member: t.sides[i].id}
	err := again(ctx, func() error {
		log.Entries = nil
		return t.pages(ctx, i, 0, func(e *entry) { log.Entries = append(log.Entries, t.toHistory(e)) })
	})
	return log, err
}

// pages visits all entries after a seq (from the base).
func (t *talk) pages(ctx context.Context, i int, after int64, visit func(e *entry)) error {
	for {
		t.mu.Lock()
		socket := t.sides[i].socket
		t.mu.Unlock()
		if socket == nil {
			return errGone
		}
		body, err := socket.callRaw(ctx, procedureEvents, &messagingv1.ListEventsRequest{
			ConversationId: t.id, AfterSeq: t.base + after, Limit: eventsPage,
		})
		if err != nil {
			return fmt.Errorf("read the log of %s: %w", t.id, err)
		}
		more := false
		if err := eachEntry(body, &more, func(e *entry) { after = e.seq - t.base; visit(e) }); err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}
