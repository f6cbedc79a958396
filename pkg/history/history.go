// Package history records what the clients of a messaging system did and saw,
// and judges afterwards whether the system kept its promises.
//
// It owns the meaning of "nothing lost, nothing twice, in order": Check is the
// one place where that is defined, for the whole-system tests, the load
// generator and the fault runs. It knows no transport and trusts no clock but the
// recorder's own, so a history made on one machine by one process can be checked
// for real-time order; histories of several processes are merged and keep only
// the order within each (see Send.Origin).
package history

import (
	"hash/fnv"
	"sync"
	"sync/atomic"
)

// Outcome is what the sender of a message knows in the end.
type Outcome uint8

const (
	// Unknown: no answer, or one that leaves it open (unavailable, a cut socket).
	// The message may stand in the log once, or not at all.
	Unknown Outcome = iota
	// Acked: the server said that the message is stored, and where.
	Acked
	// Refused: the server said that the message is not stored and will not be.
	Refused
)

// Send is one message as its sender saw it, over all tries with the same client
// id.
type Send struct {
	// Origin names the recorder: Invoked and Completed compare only within one.
	Origin string
	// Conversation, Sender and ClientID identify the message.
	Conversation, Sender, ClientID string
	// Device and Lane: sends of one device in one lane keep their order if each was
	// accepted at the first try (Tries == 1). A device that retries a message after
	// later ones were accepted has given that order up itself.
	Device, Lane string
	// Content is Hash of the text.
	Content uint64
	Tries   int
	// Invoked is the tick before the first try left, Completed the tick after the
	// last answer arrived (0 if none did). Ticks rise over all clients of a recorder.
	Invoked, Completed int64
	Outcome            Outcome
	// Seq is where the server said that it stands, if Acked.
	Seq int64
}

// Entry is one element of a conversation's log as a client got it.
type Entry struct {
	Seq, Ordinal     int64
	Sender, ClientID string
	Content          uint64
	// At is created_at in nanoseconds since 1970.
	At int64
	// Message is false for entries that are no message (a conversation's start).
	Message bool
}

// Log is a conversation read from the server from its beginning, by one member,
// after the load had ended and everything was quiet.
type Log struct {
	Conversation, Member string
	Entries              []Entry
}

// View is what one device showed of a conversation: the entries in the order in
// which it accepted them, after its own repair of holes. A device that showed nothing must have a
// view, too, an empty one, or nobody misses it: a Recorder knows only those that showed something.
type View struct {
	Conversation, Device string
	Entries              []Entry
}

// History is everything that Check needs.
type History struct {
	Sends []Send
	Logs  []Log
	Views []View
}

// Hash is the content hash of a text that Send and Entry carry (FNV-1a, 64 bit).
func Hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // never fails
	return h.Sum64()
}

// Recorder gathers a history from many goroutines.
type Recorder struct {
	origin string
	tick   atomic.Int64

	mu    sync.Mutex
	sends []*Send
	logs  []Log
	views map[viewKey]*View
}

type viewKey struct{ conversation, device string }

// NewRecorder returns an empty recorder. Origin must be unique among the
// recorders whose histories are merged.
func NewRecorder(origin string) *Recorder {
	return &Recorder{origin: origin, views: map[viewKey]*View{}}
}

// Pending is a message that is being sent.
type Pending struct {
	r    *Recorder
	send *Send
}

// Invoke records that a message is about to be sent for the first time. Origin,
// Invoked, Tries and Outcome of s are set here.
func (r *Recorder) Invoke(s Send) *Pending {
	s.Origin, s.Tries, s.Outcome, s.Completed = r.origin, 1, Unknown, 0
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Invoked = r.tick.Add(1)
	r.sends = append(r.sends, &s)
	return &Pending{r: r, send: &s}
}

// Retry records another try with the same client id.
func (p *Pending) Retry() {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.send.Tries++
}

// Ack records the server's word that the message stands at seq.
func (p *Pending) Ack(seq int64) { p.complete(Acked, seq) }

// Refuse records the server's word that the message is not stored.
func (p *Pending) Refuse() { p.complete(Refused, 0) }

func (p *Pending) complete(o Outcome, seq int64) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.send.Outcome, p.send.Seq, p.send.Completed = o, seq, p.r.tick.Add(1)
}

// Saw records that a device accepted an entry into what it shows.
func (r *Recorder) Saw(conversation, device string, e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := viewKey{conversation, device}
	v := r.views[k]
	if v == nil {
		v = &View{Conversation: conversation, Device: device}
		r.views[k] = v
	}
	v.Entries = append(v.Entries, e)
}

// Read records a member's final reading of a conversation's log.
func (r *Recorder) Read(l Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logs = append(r.logs, l)
}

// History returns a copy of what was recorded so far.
func (r *Recorder) History() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := History{Logs: append([]Log(nil), r.logs...)}
	for _, s := range r.sends {
		h.Sends = append(h.Sends, *s)
	}
	for _, v := range r.views {
		h.Views = append(h.Views, View{v.Conversation, v.Device, append([]Entry(nil), v.Entries...)})
	}
	return h
}

// Merge joins histories of several recorders.
func Merge(hs ...History) History {
	var all History
	for _, h := range hs {
		all.Sends = append(all.Sends, h.Sends...)
		all.Logs = append(all.Logs, h.Logs...)
		all.Views = append(all.Views, h.Views...)
	}
	return all
}
