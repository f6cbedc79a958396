package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

const (
	// callsAtOnce is how many calls a process makes at once beside the load.
	callsAtOnce = 16
	// patience is how long a closed loop waits for a push before it asks.
	patience = 2 * time.Second
	// plantedAfter is when a planted fault of a test happens.
	plantedAfter = 500 * time.Millisecond
)

// prepare starts the conversations, or finds them: the first person with the
// second, the third with the fourth and so on.
func (r *run) prepare(ctx context.Context) error {
	talks := make([]*talk, len(r.people)/2)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callsAtOnce)
	for i := range talks {
		group.Go(func() (err error) { talks[i], err = r.start(ctx, i); return err })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	r.talks.Store(&talks)
	return nil
}

func (r *run) start(ctx context.Context, i int) (*talk, error) {
	r.mu.Lock()
	a, b := r.sockets[2*i], r.sockets[2*i+1]
	r.mu.Unlock()
	if a == nil || b == nil {
		return nil, errNotConnected
	}
	other := r.people[2*i+1].ID.String()
	var res messagingv1.CreateDirectConversationResponse
	err := again(ctx, func() error {
		return a.call(ctx, procedureStart, &messagingv1.CreateDirectConversationRequest{UserId: other}, &res)
	})
	if err != nil {
		return nil, fmt.Errorf("start a conversation: %w", err)
	}
	c := res.GetConversation()
	t := &talk{run: r, index: uint32(i), id: c.GetId(), base: c.GetHeadSeq(), baseOrdinal: c.GetHeadOrdinal()}
	t.sides[0] = &side{person: 2 * i, id: r.people[2*i].ID.String(), socket: a, next: 1}
	t.sides[1] = &side{person: 2*i + 1, id: other, socket: b, next: 1}
	return t, nil
}

// again repeats a call that the server asks to repeat, for up to half a minute.
func again(ctx context.Context, call func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := call()
		pause, ok := worthRepeating(err)
		if !ok || sleepUntil(ctx, time.Now().Add(max(pause, 100*time.Millisecond))) != nil {
			return err
		}
	}
}

// worthRepeating says after which pause a call may succeed that did not: the server is busy, or does not know the people
// yet, or the connection is just made anew.
func worthRepeating(err error) (pause time.Duration, ok bool) {
	if errors.Is(err, errGone) {
		return 0, true
	}
	told, ok := errors.AsType[*fault](err)
	if !ok || !told.unknown() && told.Reason != "USER_NOT_FOUND" && told.Code != "resource_exhausted" {
		return 0, false
	}
	return told.RetryAfter, true
}

// direct sends messages from an instant on, for the warm-up and the measured time, and
// waits until everything is quiet or settleTime has passed.
func (r *run) direct(ctx context.Context, at time.Time) error {
	at = time.Now().Add(time.Until(at)) // from here on by the clock that only goes forward
	from := at.Add(r.opts.Warmup)
	until := from.Add(r.opts.Duration)
	r.meter.measure(from, until)
	if err := sleepUntil(ctx, at); err != nil {
		return err
	}
	used := make(chan float64, 1)
	loading, loaded := context.WithCancel(ctx)
	defer loaded()
	go func() { used <- cpuBetween(loading, from, until) }()
	var starting sync.WaitGroup
	defer starting.Wait()
	starting.Go(func() { r.starts(ctx, loading, at, until) })
	r.sending.Store(true)
	if r.plant.running != nil {
		time.AfterFunc(plantedAfter, func() { r.plant.running(r) })
	}
	switch r.opts.Mode {
	case modeOpen:
		r.openLoop(ctx, at, until)
	default:
		r.closedLoop(ctx, until)
	}
	r.sending.Store(false)
	r.seconds = max(time.Since(from), 0).Seconds()
	loaded() // before its time if the record is full
	r.cpu = <-used
	return r.settle(ctx)
}

// cpuBetween is what this process uses between two instants, in seconds; when ctx ends, so far.
func cpuBetween(ctx context.Context, from, until time.Time) float64 {
	_ = sleepUntil(ctx, from)
	before := ownCPU()
	_ = sleepUntil(ctx, until)
	return ownCPU() - before
}

// closedLoop starts every pair; from then on the readers drive them.
func (r *run) closedLoop(ctx context.Context, until time.Time) {
	for _, t := range r.allTalks() {
		t.mu.Lock()
		t.closedRun = true
		t.advanceLocked()
		t.mu.Unlock()
	}
	r.whileSending(ctx, until)
	for _, t := range r.allTalks() {
		t.mu.Lock()
		t.closedRun = false
		t.mu.Unlock()
	}
}

// whileSending waits for the end of the load, or for a full record.
func (r *run) whileSending(ctx context.Context, until time.Time) {
	for r.sending.Load() && time.Now().Before(until) {
		if sleepUntil(ctx, earlier(until, time.Now().Add(50*time.Millisecond))) != nil {
			return
		}
	}
}

// openLoop sends at fixed intended times, whatever has become of the messages
// before: a slow server gets no rest, and its delays count from when a message was
// meant to leave. Pairs take turns in an order drawn by the seed.
func (r *run) openLoop(ctx context.Context, at, until time.Time) {
	random := rand.New(rand.NewPCG(r.opts.Seed, uint64(r.process)+1<<32))
	share := r.opts.Rate / float64(r.opts.Procs)
	interval := time.Duration(float64(time.Second) / share)
	// Processes share the rate, each a part of an interval behind the one before.
	next := at.Add(interval * time.Duration(r.process) / time.Duration(r.opts.Procs))
	talks := r.allTalks()
	lanes := min(senders, len(talks))
	work := make([]chan due, lanes)
	var sending sync.WaitGroup
	for i := range work {
		work[i] = make(chan due, queued)
		sending.Go(func() {
			for d := range work[i] {
				talks[d.talk].send(d.from, r.meter.at(d.at))
			}
		})
	}
	order := random.Perm(len(talks))
	for i := 0; next.Before(until) && r.sending.Load(); i++ {
		if wait := time.Until(next); wait > 0 && sleepUntil(ctx, next) != nil {
			break
		}
		talk := order[i%len(order)]
		// A full queue delays those behind it; their latency counts from the intended time.
		work[talk%lanes] <- due{talk, uint8(random.IntN(2)), next}
		next = next.Add(interval)
	}
	for _, w := range work {
		close(w)
	}
	sending.Wait()
}

const (
	// senders write for the open loop: one blocked connection holds up a fraction only.
	senders = 8
	queued  = 4096
)

// due is one message of the open loop.
type due struct {
	talk int
	from uint8
	at   time.Time
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// sleepUntil waits for an instant. The error is ctx's.
func sleepUntil(ctx context.Context, at time.Time) error {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
