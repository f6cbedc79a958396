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
	// waitSince is when the message that is waited for was sent (ns).
	waitSince int64
	closedRun bool
	scratch   []byte
}

const (
	waitAck uint8 = 1 << iota
	waitDelivery
)

// sent is one message as its sender knows it.
type sent struct {
	// intended is when it should have left, at when it left, in ns since 1970.
	intended, at int64
	content      uint64
	// invoked and completed are ticks of the process, for the order in real time.
	invoked, completed uint32
	// seq counts from the talk's base.
	seq     uint32
	sender  uint8
	outcome history.Outcome
	// answered: completed by an answer, or by the connection's end.
	settled bool
	// delivered: the other side has it.
	delivered bool
}

// side is one person in a talk.
type side struct {
	person int
	// id is the person's, as entries name their sender.
	id     string
	socket *socket // nil while there is none
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

// send sends one message from a side. It holds the talk until it is written, so
// that counters leave in their order.
func (t *talk) send(from uint8, intended time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sendLocked(from, intended)
}

func (t *talk) sendLocked(from uint8, intended time.Time) {
	r := t.run
	socket := t.sides[from].socket
	if socket == nil {
		// Nothing leaves: the open loop counts it, the closed one goes on after the reconnect.
		r.meter.count(intended.UnixNano(), func(c *Counts) { c.Errors["not connected"]++ })
		t.waiting = 0
		return
	}
	if !r.record(t) {
		return
	}
	counter := t.first + uint32(len(t.sends))
	now := time.Now().UnixNano()
	id := t.clientID(counter, now)
	var text uuidText
	formatUUID(&text, id)
	body := t.text(counter)
	t.sends = append(t.sends, sent{intended: intended.UnixNano(), at: now, content: hash(body), invoked: r.tick(), sender: from})
	if t.closedRun {
		t.waiting, t.waitSince = r.wait, now
	}
	r.meter.count(intended.UnixNano(), func(c *Counts) { c.Sent++ })
	err := socket.begin(pending{talk: t, counter: counter}, func(w *writer, id uint32) []byte {
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
	took := time.Duration(now.UnixNano() - m.intended)
	if f.kind == kindError {
		t.refusedLocked(m, f, took)
		return
	}
	seq, err := decodeSeq(f.body)
	if err != nil || seq <= t.base {
		r.meter.count(m.intended, func(c *Counts) { c.Unknown++; c.Errors["answer without a seq"]++ })
	} else {
		m.outcome, m.seq = history.Acked, uint32(seq-t.base)
		r.meter.arrived(m.intended, now, func(c *Counts) { c.Acked++; c.Ack.add(took) }, func(c *Counts) { c.AckedIn++ })
	}
	t.waiting &^= waitAck
	t.advanceLocked(now)
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
	if ok && !told.unknown() {
		m.outcome = history.Refused
		r.meter.count(m.intended, func(c *Counts) {
			c.Refused++
			c.Refusal.add(took)
			if told.told {
				c.Hinted++
			}
		})
	} else {
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
	t.run.meter.count(m.intended, func(c *Counts) { c.Unknown++ })
	t.waiting = waitAck | waitDelivery // until the reconnect, which resumes
}

// resume goes on with a closed loop that nothing drives any more.
func (t *talk) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closedRun {
		t.waiting = 0
		t.advanceLocked(time.Now())
	}
}

// advanceLocked sends the next message of a closed loop when everything that it waits
// for has come. The two take turns.
func (t *talk) advanceLocked(now time.Time) {
	if !t.closedRun || t.waiting != 0 || !t.run.sending.Load() {
		return
	}
	t.turn ^= 1
	t.sendLocked(t.turn, now)
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

// attach gives a side its connection, repairs what it missed without one, and goes
// on with a loop that stood still because of that.
func (t *talk) attach(i int, s *socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.sides[i]
	d.socket, d.repairing = s, false
	t.repairLocked(i)
	if t.closedRun && (t.waiting == 0 || t.lastLostLocked(i)) {
		t.waiting = 0
		t.advanceLocked(time.Now())
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
func (t *talk) stalled(now time.Time, patience time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closedRun && t.waiting == waitDelivery && now.UnixNano()-t.waitSince > int64(patience) {
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
	for i := len(t.sends) - 1; i >= 0 && i >= len(t.sends)-64; i-- { // at most 32 calls are open on a socket
		m := t.sends[i]
		if !m.settled || m.outcome == history.Acked && !m.delivered {
			return false
		}
	}
	return true
}

// forgetLocked drops old messages where nothing is recorded: only latencies need them.
func (t *talk) forgetLocked() {
	const enough = 1024
	if len(t.sends) >= 2*enough {
		t.sends = append(t.sends[:0], t.sends[enough:]...)
		t.first += enough
	}
}
