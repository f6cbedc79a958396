package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/parleychat/parley/cmd/parley/crowd"
)

// run is the load of one client process: its share of the people, their connections and
// what they saw.
type run struct {
	opts    Options
	process int
	tag     uint16
	people  []crowd.Person
	mint    crowd.Mint
	filler  []byte
	dialers []*websocket.Dialer

	meter    *meter
	ticks    atomic.Uint32
	recorded atomic.Int64
	limit    int64
	keep     bool
	wait     uint8
	// sending is on from the start of the load to its end; ending, when connections
	// are closed on purpose; full, when the record is.
	sending, ending, full atomic.Bool
	// beat counts the keeper's seconds.
	beat atomic.Int64

	mu      sync.Mutex
	sockets []*socket // by person; nil while there is none
	known   []bool    // by person: has been connected before
	readers sync.WaitGroup
	// talks are published when all are prepared.
	talks atomic.Pointer[[]*talk]
	// cpu is what this process used in the measured window, and seconds is how long that was.
	cpu, seconds float64
	// ctx ends redials.
	ctx   context.Context //nolint:containedctx // of the process, for what no caller waits for
	plant plant
}

// plant are faults of this client, for the tests of the judge: forget hides an entry
// from the record, dropPush loses a push before anybody sees it, running is called
// shortly after the beginning.
type plant struct {
	running  func(r *run)
	forget   func(seq int64) bool
	dropPush func(e *entry) bool
}

func newRun(ctx context.Context, job job, plant plant) *run {
	r := &run{
		opts: job.Options, process: job.Process, tag: job.Tag, people: job.People, mint: job.Mint,
		meter: newMeter(), limit: job.Options.RecordLimit / int64(job.Options.Procs), keep: job.Options.Check,
		sockets: make([]*socket, len(job.People)), known: make([]bool, len(job.People)), ctx: ctx, plant: plant,
	}
	r.wait = map[string]uint8{waitForAck: waitAck, waitForDelivery: waitDelivery, waitForBoth: waitAck | waitDelivery}[job.Options.Wait]
	random := rand.New(rand.NewPCG(job.Options.Seed, uint64(job.Process)))
	r.filler = make([]byte, 4096)
	for i := range r.filler {
		r.filler[i] = "abcdefghijklmnopqrstuvwxyz     "[random.IntN(31)]
	}
	for _, source := range job.Options.sources() {
		r.dialers = append(r.dialers, dialFrom(source))
	}
	return r
}

func (r *run) tick() uint32 { return r.ticks.Add(1) }

// record makes room for one more message of a talk. False: the record is full, and the load ends.
func (r *run) record(t *talk) bool {
	if !r.keep {
		t.forgetLocked()
		return true
	}
	if r.recorded.Add(1) > r.limit || len(t.sends) >= maxMessages {
		r.full.Store(true)
		r.sending.Store(false)
		return false
	}
	return true
}

// later runs fn after a while, unless the process ends.
func (r *run) later(d time.Duration, fn func()) { time.AfterFunc(d, fn) }

// Connected is how connecting went: from the dial to Welcome, and to the answer of the first Sync if the scenario has one.
type Connected struct {
	Opened  int     `json:"opened"`
	Failed  int     `json:"failed"`
	Seconds float64 `json:"seconds"`
	// Seconds99 is when the first 99 of 100 were there: one straggler says nothing about a rate.
	Seconds99 float64 `json:"seconds99"`
}

// connect opens connections of people up to a number, several at once.
func (r *run) connect(ctx context.Context, upTo int) Connected {
	missing := r.missing(upTo)
	began := time.Now()
	var next, opened, failed atomic.Int64
	var most atomic.Int64
	var dialing sync.WaitGroup
	for range min(r.opts.Dials, len(missing)) {
		dialing.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(missing) || ctx.Err() != nil {
					return
				}
				if err := r.arrive(ctx, missing[i]); err != nil {
					r.meter.fail(r.meter.now(), fmt.Errorf("connect: %w", err))
					failed.Add(1)
					continue
				}
				if opened.Add(1) == int64(len(missing))*99/100 {
					most.Store(int64(time.Since(began)))
				}
			}
		})
	}
	dialing.Wait()
	return Connected{int(opened.Load()), int(failed.Load()), time.Since(began).Seconds(), time.Duration(most.Load()).Seconds()}
}

// missing are those of the first people who have never been connected: whoever loses the connection comes back alone.
func (r *run) missing(upTo int) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []int
	for person := range r.sockets[:upTo] {
		if !r.known[person] {
			list = append(list, person)
		}
	}
	return list
}

// arrive connects a person and does what a client does next.
func (r *run) arrive(ctx context.Context, person int) error {
	s, err := r.open(ctx, person)
	if err != nil || r.opts.Scenario != scenarioIdle || !r.opts.Sync {
		return err
	}
	return r.sync(ctx, s)
}

// open connects a person and starts its reader.
func (r *run) open(ctx context.Context, person int) (*socket, error) {
	r.mu.Lock()
	token := r.people[person].Token
	r.mu.Unlock()
	s, err := dial(ctx, r.dialers[person%len(r.dialers)], r.opts.gatewayOf(person), token)
	if err != nil {
		return nil, err
	}
	s.to, s.person, s.tick = r, person, &r.beat
	s.heard.Store(r.beat.Load())
	r.mu.Lock()
	r.sockets[person], r.known[person] = s, true
	r.mu.Unlock()
	r.readers.Go(s.run)
	return s, nil
}

// talkOf is the talk of a person and its side in it; nil if there is none.
func (r *run) talkOf(person int) (*talk, int) {
	talks := r.allTalks()
	if person/2 >= len(talks) {
		return nil, 0
	}
	return talks[person/2], person % 2
}

// allTalks are the conversations, none before they are prepared.
func (r *run) allTalks() []*talk {
	if talks := r.talks.Load(); talks != nil {
		return *talks
	}
	return nil
}

// pushed implements listener.
func (r *run) pushed(s *socket, e *entry, now time.Time) {
	if r.plant.dropPush != nil && r.plant.dropPush(e) {
		return
	}
	if t, _ := r.talkOf(s.person); t != nil && string(e.conversation) == t.id {
		t.pushed(s, e, now)
	}
}

// resync implements listener: pushes may have been lost. A pair asks for its one conversation, all others do what they did
// at first.
func (r *run) resync(s *socket) {
	t, i := r.talkOf(s.person)
	if t == nil {
		r.readers.Go(func() { r.begin(r.ctx, s) })
		return
	}
	r.meter.note(func(c *Counts) { c.Syncs++ })
	t.mu.Lock()
	defer t.mu.Unlock()
	t.repairLocked(i)
}

// closed implements listener. Unless it was our wish, the person comes back.
func (r *run) closed(s *socket, err error) {
	r.mu.Lock()
	if r.sockets[s.person] == s {
		r.sockets[s.person] = nil
	}
	r.mu.Unlock()
	if t, _ := r.talkOf(s.person); t != nil {
		t.detach(s)
	}
	if r.ending.Load() {
		return
	}
	r.meter.note(func(c *Counts) { c.Disconnects++ })
	r.meter.fail(r.meter.now(), err)
	if advice, ok := returns(err); ok {
		r.readers.Go(func() { r.comeBack(s.person, advice) })
	}
}

// returns says whether a client connects again after its connection ended so, and what the server advised to wait: section 9
// of docs/protocol.md. An expired token is another matter, for a new one is at hand, and 4408 and 4429 say to come back.
func returns(err error) (advice time.Duration, again bool) {
	closed, ok := errors.AsType[*websocket.CloseError](err)
	if !ok {
		return 0, true
	}
	var told struct {
		ReconnectMS int64 `json:"reconnect_ms"`
	}
	if json.Unmarshal([]byte(closed.Text), &told) != nil {
		told.ReconnectMS = 0 // a word, no advice
	}
	switch closed.Code {
	case 1003, 1007, 1009, 4400, 4401:
		return 0, false
	case 4402, 4408, 4429:
		return time.Duration(told.ReconnectMS) * time.Millisecond, true
	}
	return time.Duration(told.ReconnectMS) * time.Millisecond, closed.Code < 4400
}

// comeBack connects a person again, first when the server advised, and with full jitter between tries as section 8 of
// docs/protocol.md asks.
func (r *run) comeBack(person int, advice time.Duration) {
	const most = 30 * time.Second
	pause := rand.N(time.Second) + advice
	for tries := 1; ; tries++ {
		if sleepUntil(r.ctx, time.Now().Add(pause)) != nil || r.ending.Load() {
			return
		}
		s, err := r.again(person)
		if err == nil {
			if t, i := r.talkOf(person); t != nil {
				t.attach(i, s)
			} else {
				r.begin(r.ctx, s)
			}
			return
		}
		r.meter.fail(r.meter.now(), err)
		pause = rand.N(min(most, time.Second<<min(tries, 5)))
	}
}

// again connects a person with a new token.
func (r *run) again(person int) (*socket, error) {
	if _, err := r.newToken(person); err != nil {
		return nil, err
	}
	return r.open(r.ctx, person)
}

// newToken gives a person a fresh token.
func (r *run) newToken(person int) (crowd.Person, error) {
	r.mu.Lock()
	p := r.people[person]
	r.mu.Unlock()
	if err := r.mint.Renew(&p, time.Now()); err != nil {
		return p, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.people[person].Token, r.people[person].Expires = p.Token, p.Expires
	return p, nil
}

// end closes all connections and waits for their readers.
func (r *run) end() {
	r.ending.Store(true)
	r.mu.Lock()
	sockets := append([]*socket(nil), r.sockets...)
	r.mu.Unlock()
	for _, s := range sockets {
		if s != nil {
			s.end()
		}
	}
	r.readers.Wait()
}

// alive counts the connections.
func (r *run) alive() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.sockets {
		if s != nil {
			n++
		}
	}
	return n
}

var errNotConnected = errors.New("not everybody is connected")
