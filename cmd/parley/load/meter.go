package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// latencies is a histogram of times in microseconds, up to ten minutes: to three digits for the report, to two for the
// display.
type latencies struct{ *hdrhistogram.Histogram }

const (
	longest       = 10 * time.Minute
	reportDigits  = 3
	displayDigits = 2
)

func newLatencies(digits int) latencies {
	return latencies{hdrhistogram.New(1, longest.Microseconds(), digits)}
}

func (l latencies) add(d time.Duration) {
	// Cannot fail: the value is within the histogram's bounds.
	_ = l.RecordValue(min(max(d.Microseconds(), 1), longest.Microseconds()))
}

// MarshalJSON implements json.Marshaler: pairs of a value and how often it was
// seen. The library's own encoding is smaller, and its decoder trusts every byte.
func (l latencies) MarshalJSON() ([]byte, error) {
	pairs := [][2]int64{}
	for _, bar := range l.Distribution() {
		if bar.Count > 0 {
			pairs = append(pairs, [2]int64{bar.From, bar.Count})
		}
	}
	return json.Marshal(pairs)
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *latencies) UnmarshalJSON(b []byte) (err error) {
	*l, err = decodeLatencies(b, reportDigits)
	return err
}

func decodeLatencies(b []byte, digits int) (latencies, error) {
	decoded := newLatencies(digits)
	var pairs [][2]int64
	if err := json.Unmarshal(b, &pairs); err != nil {
		return decoded, err
	}
	for _, pair := range pairs {
		value, count := pair[0], pair[1]
		if value < 0 || count < 0 || count > math.MaxInt64-decoded.TotalCount() {
			return decoded, errors.New("decode a histogram: numbers that nobody counted")
		}
		if err := decoded.RecordValues(value, count); err != nil {
			return decoded, fmt.Errorf("decode a histogram: %w", err)
		}
	}
	return decoded, nil
}

// coarse are latencies of two digits, an eighth of the memory.
type coarse struct{ latencies }

// UnmarshalJSON implements json.Unmarshaler.
func (c *coarse) UnmarshalJSON(b []byte) (err error) {
	c.latencies, err = decodeLatencies(b, displayDigits)
	return err
}

// Counts are what one or all client processes saw in a span of time.
type Counts struct {
	// Sent were meant to leave, Acked were acknowledged, Refused were answered by an error that means "not stored",
	// Unknown have no answer that tells, NeverSent found no connection until the end. Sent is their sum.
	Sent      int64 `json:"sent"`
	Acked     int64 `json:"acked"`
	Refused   int64 `json:"refused"`
	Unknown   int64 `json:"unknown"`
	NeverSent int64 `json:"never_sent"`
	// Unanswered of Unknown got no answer at all for as long as was waited; their time until then is in Ack. So
	// is that of NeverSent.
	Unanswered int64 `json:"unanswered"`
	// SentIn left in the span.
	SentIn int64 `json:"sent_in"`
	// Hinted of Refused said when to come again.
	Hinted int64 `json:"hinted"`
	// Delivered reached the other person by a push, Missed only by ListEvents; the time of both is in Delivery.
	Delivered int64 `json:"delivered"`
	Missed    int64 `json:"missed"`
	// Undelivered were acknowledged and had not reached the other person when the wait for the last ones ended; their
	// time until then is in Delivery. The judge finds them later, or calls them lost.
	Undelivered int64 `json:"undelivered"`
	// AckedIn and DeliveredIn arrived in the span, whenever their messages were meant to leave: the
	// rates. An overloaded server answers the rest after the span.
	AckedIn     int64 `json:"acked_in"`
	DeliveredIn int64 `json:"delivered_in"`
	// Doubled were pushed more than once to one connection, Holes are pushes that came before an earlier one.
	Doubled int64 `json:"doubled"`
	Holes   int64 `json:"holes"`
	// Disconnects ended without our wish, Renewed are tokens prolonged on an open connection.
	Disconnects int64 `json:"disconnects"`
	Renewed     int64 `json:"renewed"`
	Syncs       int64 `json:"syncs"`
	Starts      int64 `json:"starts"`
	// Errors by code and reason, or by what broke a connection.
	Errors map[string]int64 `json:"errors"`

	Ack      latencies `json:"ack"`
	Delivery latencies `json:"delivery"`
	Refusal  latencies `json:"refusal"`
	SyncTime latencies `json:"sync_time"`
	// StartTime is that of all calls with which a client begins.
	StartTime latencies `json:"start_time"`
	// Late is by how much this client itself was behind its plan in the open loop. It is part of Ack and Delivery.
	Late latencies `json:"late"`
}

// newCounts makes counts for a report.
func newCounts() *Counts { return newCountsTo(reportDigits) }

func newCountsTo(digits int) *Counts {
	c := &Counts{Errors: map[string]int64{}}
	for _, l := range c.histograms() {
		*l = newLatencies(digits)
	}
	return c
}

// histograms are all times, for adding up.
func (c *Counts) histograms() []*latencies {
	return []*latencies{&c.Ack, &c.Delivery, &c.Refusal, &c.SyncTime, &c.StartTime, &c.Late}
}

// numbers are all plain counters, for adding up.
func (c *Counts) numbers() []*int64 {
	return []*int64{
		&c.Sent, &c.Acked, &c.Refused, &c.Unknown, &c.Hinted, &c.Delivered, &c.Missed, &c.Doubled, &c.Holes,
		&c.AckedIn, &c.DeliveredIn, &c.Disconnects, &c.Renewed, &c.Syncs, &c.Starts, &c.NeverSent, &c.Unanswered, &c.SentIn,
		&c.Undelivered,
	}
}

// add merges other into c.
func (c *Counts) add(other *Counts) {
	theirs := other.numbers()
	for i, n := range c.numbers() {
		*n += *theirs[i]
	}
	for what, n := range other.Errors {
		c.Errors[what] += n
	}
	more := other.histograms()
	for i, l := range c.histograms() {
		l.Merge(more[i].Histogram)
	}
}

func (c *Counts) reset() {
	for _, n := range c.numbers() {
		*n = 0
	}
	clear(c.Errors)
	for _, l := range c.histograms() {
		l.Reset()
	}
}

// moment is a time of this process: nanoseconds since its meter was made, by the clock that only goes forward. A step of
// the machine's clock changes no latency.
type moment int64

// meter counts for one client process: the second that runs, for the display, and the
// measured window. What belongs to a message counts for the window if the message was
// meant to leave in it, however late the rest came.
type meter struct {
	mu     sync.Mutex
	second *Counts
	// idle takes the place of second while that is told. Only the one who tells uses it.
	idle   *Counts
	window *Counts
	epoch  time.Time
	// from and until bound the window.
	from, until moment
}

// newMeter measures everything from now on.
func newMeter() *meter {
	return &meter{
		second: newCountsTo(displayDigits), idle: newCountsTo(displayDigits), window: newCounts(), epoch: time.Now(), until: math.MaxInt64,
	}
}

// at is the moment of a time that this process has read, or made from one.
func (m *meter) at(t time.Time) moment { return moment(t.Sub(m.epoch)) }

func (m *meter) now() moment { return m.at(time.Now()) }

// measure begins a new window.
func (m *meter) measure(from, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.from, m.until = m.at(from), m.at(until)
	m.window.reset()
}

// count runs fn on the counts that something belongs to which was meant for an instant.
func (m *meter) count(intended moment, fn func(c *Counts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(m.second)
	if intended >= m.from && intended < m.until {
		fn(m.window)
	}
}

// arrived is count for something that came at now and belongs to a message meant for an instant:
// in is run on the counts of now.
func (m *meter) arrived(intended, now moment, fn, in func(c *Counts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(m.second)
	in(m.second)
	if intended >= m.from && intended < m.until {
		fn(m.window)
	}
	if now >= m.from && now < m.until {
		in(m.window)
	}
}

// note counts something that belongs to no message.
func (m *meter) note(fn func(c *Counts)) { m.count(m.now(), fn) }

// fail counts an error by what it is.
func (m *meter) fail(intended moment, err error) {
	m.count(intended, func(c *Counts) { c.Errors[nameOf(err)]++ })
}

// tellSecond tells what was counted since the last call. Counting goes on meanwhile and waits for nothing: what this
// takes would be in the times that are measured.
func (m *meter) tellSecond(tell func(c *Counts) error) error {
	m.mu.Lock()
	m.second, m.idle = m.idle, m.second
	m.mu.Unlock()
	defer m.idle.reset()
	return tell(m.idle)
}

// takeWindow returns the window's counts so far.
func (m *meter) takeWindow() *Counts {
	c := newCounts()
	m.mu.Lock()
	defer m.mu.Unlock()
	c.add(m.window)
	return c
}

// nameOf is the class of an error: few values, no ids.
func nameOf(err error) string {
	if f, ok := errors.AsType[*fault](err); ok {
		return strings.TrimSpace(f.Code + " " + f.Reason)
	}
	return classOf(err)
}

// trimReason cuts the enum's prefix, as docs/protocol.md writes reasons.
func trimReason(name string) string {
	name = strings.TrimPrefix(name, "REASON_")
	if name == "UNSPECIFIED" {
		return ""
	}
	return name
}
