package load

import (
	"encoding/binary"
	"strconv"
	"sync"
	"time"

	"github.com/parleychat/parley/pkg/history"
)

// talk is the conversation of one pair. Its two sides are sockets, which change
// when a connection is made anew.
//
// It records every message and everything that both sides saw, about 100 bytes a
// message, for the check at the end. What can be derived is not kept: the client
// id from the time, the place of the talk and the counter.
type talk struct {
	run *run
	// index is the talk's place in this process.
	index uint32
	// id is the conversation; base and baseOrdinal are its head before the first message of this run.
	id                string
	base, baseOrdinal int64

	mu    sync.Mutex
	sides [2]*side
	sends []sent
	// first is the counter of sends[0]: above 0 only if nothing is recorded.
	first uint32
	// turn is who sends next; waiting is what has to come before that.
	turn    uint8
	waiting uint8
	// waitSince is when the message that is waited for was sent.
	waitSince moment
	// open are the messages without an answer, undelivered those that were acknowledged and have not reached the other side.
	open, undelivered int
	closedRun         bool
	scratch           []byte
}

const (
	waitAck uint8 = 1 << iota
	waitDelivery
)

// sent is one message as its sender knows it.
type sent struct {
	// intended is when it should have left; at is when it left, in ns since 1970, and goes into its id.
	intended moment
	at       int64
	content  uint64
	// invoked and completed are ticks of the process, for the order in real time.
	invoked, completed uint32
	// seq counts from the talk's base.
	seq     uint32
	sender  uint8
	outcome history.Outcome
	// settled: completed by an answer, or by the connection's end.
	settled bool
	// givenUp: nobody waits any more, and the time until then was counted.
	givenUp bool
	// delivered: the other side has it.
	delivered bool
}

// side is one person in a talk.
type side struct {
	person int
	// id is the person's, as entries name their sender.
	id     string
	socket *socket // nil while there is none
	// queue is when messages were meant to leave that found no connection.
	queue []moment
	// next is the seq that comes next, from the base; aside are those that came too early.
	next  int64
	aside map[int64]history.Entry
	// repairing: a ListEvents is on its way.
	repairing bool
	seen      []seen
	// odd are entries of nobody in this run, by their place in seen.
	odd map[int]history.Entry
}

// seen is an entry of this run as one side got it.
type seen struct {
	at           int64
	content      uint64
	seq, ordinal uint32
	counter      uint32
	sender       uint8
}

// maxMessages bounds the counters of one talk.
const maxMessages = 1 << 31

// clientID derives the id of a message: a UUIDv7 whose random bits are the run,
// the process, the talk and the counter.
func (t *talk) clientID(counter uint32, at int64) (id [16]byte) {
	binary.BigEndian.PutUint64(id[0:8], uint64(at/1e6)<<16|0x7000|uint64(t.run.tag&0xfff))
	id[8] = 0x80 | byte(t.run.process&0x3f)
	id[9], id[10], id[11] = byte(t.index>>16), byte(t.index>>8), byte(t.index)
	binary.BigEndian.PutUint32(id[12:16], counter)
	return id
}

// counterOf reads the counter from a client id of this talk; false for all others.
func (t *talk) counterOf(id [16]byte) (uint32, bool) {
	counter := binary.BigEndian.Uint32(id[12:16])
	place := counter - t.first
	if counter < t.first || int(place) >= len(t.sends) {
		return 0, false
	}
	return counter, t.clientID(counter, t.sends[place].at) == id
}

func (t *talk) message(counter uint32) *sent { return &t.sends[counter-t.first] }

// send sends one message of the open loop, or has it wait for a connection: its time counts from when it was meant to
// leave. It holds the talk until it is written, so that counters leave in their order.
func (t *talk) send(from uint8, intended moment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, m := t.sides[from], t.run.meter
	late := time.Duration(m.now() - intended)
	if d.socket == nil {
		m.count(intended, func(c *Counts) { c.Sent++; c.Late.add(late); c.Errors["not connected"]++ })
		d.queue = append(d.queue, intended)
		return
	}
	if t.run.record(t) {
		m.count(intended, func(c *Counts) { c.Sent++; c.Late.add(late) })
		t.leaveLocked(from, intended)
	}
}

// flushLocked sends what waited for the connection of a side.
func (t *talk) flushLocked(from uint8) {
	d := t.sides[from]
	for len(d.queue) > 0 && d.socket != nil && t.run.record(t) {
		intended := d.queue[0]
		d.queue = d.queue[1:]
		t.leaveLocked(from, intended)
	}
}

// nextLocked sends a message of the closed loop, which is meant to leave now. Without a connection it goes on after
// the reconnect.
func (t *talk) nextLocked(from uint8) {
	m := t.run.meter
	now := m.now()
	if t.sides[from].socket == nil {
		m.count(now, func(c *Counts) { c.Errors["not connected"]++ })
		t.waiting = 0
		return
	}
	if !t.run.record(t) {
		return
	}
	t.waiting, t.waitSince = t.run.wait, now
	m.count(now, func(c *Counts) { c.Sent++ })
	t.leaveLocked(from, now)
}

// leaveLocked writes a message to the connection of its sender.
func (t *talk) leaveLocked(from uint8, intended moment) {
	r := t.run
	counter := t.first + uint32(len(t.sends))
	now := time.Now()
	id := t.clientID(counter, now.UnixNano())
	var text uuidText
	formatUUID(&text, id)
	body := t.text(counter)
	t.sends = append(t.sends, sent{intended: intended, at: now.UnixNano(), content: hash(body), invoked: r.tick(), sender: from})
	t.open++
	r.meter.count(r.meter.at(now), func(c *Counts) { c.SentIn++ })
	err := t.sides[from].socket.begin(pending{talk: t, counter: counter}, func(w *writer, id uint32) []byte {
		return w.send(id, t.id, text[:], body)
	})
	if err != nil {
		t.lostLocked(counter)
	}
}

// answered takes the server's word on a message. On the sender's reader.
func (t *talk) answered(counter uint32, f *frame, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if counter < t.first {
		return
	}
	m, r := t.message(counter), t.run
	m.settled, m.completed = true, r.tick()
	if !m.givenUp {
		t.open--
	}
	arrived := r.meter.at(now)
	took := time.Duration(arrived - m.intended)
	if f.kind == kindError {
		t.refusedLocked(m, f, took)
		return
	}
	seq, err := decodeSeq(f.body)
	good := err == nil && seq > t.base
	if good {
		m.outcome, m.seq = history.Acked, uint32(seq-t.base)
	}
	switch {
	case m.givenUp: // counted
	case good:
		if !m.delivered {
			t.undelivered++
		}
		r.meter.arrived(m.intended, arrived, func(c *Counts) { c.Acked++; c.Ack.add(took) }, func(c *Counts) { c.AckedIn++ })
	default:
		r.meter.count(m.intended, func(c *Counts) { c.Unknown++; c.Errors["answer without a seq"]++ })
	}
	t.waiting &^= waitAck
	t.advanceLocked()
}

// refusedLocked takes an error for an answer. The closed loop goes on when the server
// said, or after a moment.
func (t *talk) refusedLocked(m *sent, f *frame, took time.Duration) {
	r := t.run
	err := decodeFault(f.body)
	told, ok := err.(*fault) //nolint:errorlint // decodeFault gives it as it is
	r.meter.fail(m.intended, err)
	pause := time.Second
	if ok {
		pause = told.RetryAfter
	}
	refused := ok && !told.unknown()
	if refused {
		m.outcome = history.Refused
	}
	switch {
	case m.givenUp: // counted
	case refused:
		r.meter.count(m.intended, func(c *Counts) {
			c.Refused++
			c.Refusal.add(took)
			if told.told {
				c.Hinted++
			}
		})
	default:
		r.meter.count(m.intended, func(c *Counts) { c.Unknown++ })
	}
	if t.closedRun {
		t.waiting = waitAck | waitDelivery
		r.later(max(pause, 100*time.Millisecond), t.resume)
	}
}

// unanswered is told for messages whose connection ended.
func (t *talk) unanswered(counter uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if counter >= t.first {
		t.lostLocked(counter)
	}
}

func (t *talk) lostLocked(counter uint32) {
	m := t.message(counter)
	m.settled = true
	if !m.givenUp {
		t.open--
		t.run.meter.count(m.intended, func(c *Counts) { c.Unknown++ })
	}
	t.waiting = waitAck | waitDelivery // until the reconnect, which resumes
}

// resume goes on with a closed loop that nothing drives any more.
func (t *talk) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closedRun {
		t.waiting = 0
		t.advanceLocked()
	}
}

// advanceLocked sends the next message of a closed loop when everything that it waits
// for has come. The two take turns.
func (t *talk) advanceLocked() {
	if !t.closedRun || t.waiting != 0 || !t.run.sending.Load() {
		return
	}
	t.turn ^= 1
	t.nextLocked(t.turn)
}

// text makes the message: telling for people, of the wanted size, and no two alike.
func (t *talk) text(counter uint32) []byte {
	b := t.scratch[:0]
	b = append(b, "load "...)
	b = strconv.AppendUint(b, uint64(t.index), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(counter), 10)
	b = append(b, ' ')
	if missing := t.run.opts.Size - len(b); missing > 0 {
		from := int(counter) % len(t.run.filler)
		b = append(b, t.run.filler[from:min(from+missing, len(t.run.filler))]...)
		for len(b) < t.run.opts.Size {
			b = append(b, '.')
		}
	}
	t.scratch = b
	return b
}

// attach gives a side its connection, repairs what it missed without one, sends what waited for it, and goes on
// with a loop that stood still because of that.
func (t *talk) attach(i int, s *socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.sides[i]
	d.socket, d.repairing = s, false
	t.repairLocked(i)
	t.flushLocked(uint8(i))
	if t.closedRun && (t.waiting == 0 || t.lastLostLocked(i)) {
		t.waiting = 0
		t.advanceLocked()
	}
}

// lastLostLocked says that the last message is of this side and will not be answered.
func (t *talk) lastLostLocked(i int) bool {
	if len(t.sends) == 0 {
		return false
	}
	last := t.sends[len(t.sends)-1]
	return int(last.sender) == i && last.settled && last.outcome == history.Unknown
}

func (t *talk) detach(s *socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.sideOf(s); i >= 0 {
		t.sides[i].socket = nil
	}
}

// stalled repairs the side that has waited for a message for too long: its push was lost.
func (t *talk) stalled(now moment, patience time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closedRun && t.waiting == waitDelivery && time.Duration(now-t.waitSince) > patience {
		t.repairLocked(int(t.turn ^ 1))
	}
	for i, d := range t.sides {
		if len(d.aside) > 0 { // a repair failed
			t.repairLocked(i)
		}
	}
}

// quiet says that nothing is on its way any more: every message is answered, and
// the other side has it.
func (t *talk) quiet() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open == 0 && t.undelivered == 0 && len(t.sides[0].queue)+len(t.sides[1].queue) == 0
}

// forgetLocked drops old messages where nothing is recorded: only latencies need them.
func (t *talk) forgetLocked() {
	const enough = 1024
	if len(t.sends) >= 2*enough {
		now := t.run.meter.now()
		for i := range t.sends[:enough] {
			t.giveUpLocked(&t.sends[i], now)
		}
		t.sends = append(t.sends[:0], t.sends[enough:]...)
		t.first += enough
	}
}
