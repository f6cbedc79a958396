package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// killer is what can be killed and started again.
type killer interface {
	Kill9()
	Launch()
}

// freezer is what can be stopped and go on.
type freezer interface {
	Pause()
	Resume()
}

// server adapts the servers, whose start is done when they answer.
type server struct {
	kill, restart func()
}

func (s server) Kill9()  { s.kill() }
func (s server) Launch() { s.restart() }

func (w *world) killer(name string) killer {
	switch name {
	case "nats":
		return server{w.sys.NATS.Kill9, w.sys.NATS.Restart}
	case "redis":
		return server{w.sys.Redis.Kill9, w.sys.Redis.Restart}
	case "postgres":
		return server{w.sys.Postgres.Kill9, w.sys.Postgres.Restart}
	default:
		return w.sys.Process(name)
	}
}

func (w *world) freezer(name string) freezer {
	switch name {
	case "nats":
		return w.sys.NATS
	case "redis":
		return w.sys.Redis
	default:
		return w.sys.Process(name)
	}
}

// inflict breaks what the round says and mends it. It returns the moment from
// which on the system is on its own, which for a killed process is that of its new
// start, and what was wrong already while the fault lasted.
func (w *world) inflict(ctx context.Context, r round) (mended time.Time, err error) {
	pause(ctx, r.After)
	switch r.Kind {
	case kill:
		return w.kill(ctx, r), nil
	case freeze:
		return w.freeze(ctx, r)
	case cut, hang:
		return w.cut(ctx, r)
	case away:
		return w.away(ctx, r)
	case wipe:
		w.sys.NATS.Wipe()
		mended = time.Now()
		w.sys.NATS.Restart()
		w.wiped = true
		return mended, nil
	case poison:
		mended = time.Now()
		return mended, w.poison(ctx)
	case skew:
		return w.skew(ctx, r)
	}
	return mended, fmt.Errorf("no such fault: %s", r.Kind)
}

func (w *world) kill(ctx context.Context, r round) time.Time {
	for _, name := range r.Targets {
		w.killer(name).Kill9()
	}
	pause(ctx, r.For)
	mended := time.Now()
	for _, name := range r.Targets {
		w.killer(name).Launch()
	}
	return mended
}

// freeze stops a process. Nothing that it holds may be in the way of the others, longer than a transaction may rest
// (ten seconds): while a replica of messaging stands still, the other one serves every device, and while a gateway does, every
// device of the other is served.
func (w *world) freeze(ctx context.Context, r round) (time.Time, error) {
	frozen := time.Now()
	for _, name := range r.Targets {
		w.freezer(name).Pause()
	}
	// Half of the time is for clients to find out; after it everybody is served.
	pause(ctx, r.For/2)
	half := time.Now()
	served := func() bool { return w.crowd.unserved(half, r.Targets[0]) == 0 }
	good := false
	for time.Since(frozen) < r.For {
		good = good || served()
		if !pause(ctx, poll) {
			break
		}
	}
	good = good || served()
	for _, name := range r.Targets {
		w.freezer(name).Resume()
	}
	mended := time.Now()
	if !good && replicated(r.Targets[0]) {
		return mended, fmt.Errorf("while %s was frozen, %d devices were not served by the others: %s", r.Targets[0],
			w.crowd.unserved(half, r.Targets[0]), w.crowd.gaps(half))
	}
	return mended, nil
}

// cut breaks the network between the first target, a gateway, and NATS. Other
// targets freeze meanwhile.
func (w *world) cut(ctx context.Context, r round) (time.Time, error) {
	way := w.sys.Bus[slices.Index(w.sys.GatewayNames(), r.Targets[0])]
	if r.Kind == cut {
		way.Cut()
	} else {
		way.Hang()
	}
	began := time.Now()
	var err error
	if len(r.Targets) > 1 {
		_, err = w.freeze(ctx, round{Kind: freeze, Targets: r.Targets[1:], For: frozenMeanwhile})
	}
	pause(ctx, r.For-time.Since(began))
	mend := func() {
		w.behind = w.crowd.gaps(time.Time{}).behind
		way.Heal()
	}
	mended, serr := w.crowd.silently(mend, func(mended time.Time) error {
		// Nobody says anything any more that would show what is missing.
		if !until(ctx, w.crowd.upToDate) {
			return fmt.Errorf("after %s of silence, %s", patience, w.crowd.gaps(time.Time{}))
		}
		w.repaired = time.Since(mended)
		if w.cfg.Duration > 0 && w.repaired > w.cfg.IdleInterval {
			return fmt.Errorf("every device was right only after %s, the idle interval is %s", w.repaired, w.cfg.IdleInterval)
		}
		return nil
	})
	return mended, errors.Join(err, serr)
}

// away takes NATS away. Messages are accepted all the same, each at its first try
// (save those under way in the moment of the kill), and the events that gathered
// come out oldest first.
func (w *world) away(ctx context.Context, r round) (time.Time, error) {
	w.sys.NATS.Kill9()
	down := time.Now()
	pause(ctx, time.Second)
	acked, retried := w.crowd.acked.Load(), w.crowd.retried.Load()
	pause(ctx, r.For-time.Second)
	acked, retried = w.crowd.acked.Load()-acked, w.crowd.retried.Load()-retried
	mended := time.Now()
	w.sys.NATS.Restart()
	w.backlog = &window{from: down, to: mended}
	var faults []error
	if retried > 0 {
		faults = append(faults, fmt.Errorf("while NATS was away, %d sends had to be repeated", retried))
	}
	part := 0.5 // on a machine that is busy with other tests
	if w.cfg.Duration > 0 {
		part = 0.9
	}
	if wanted := part * (r.For - time.Second).Seconds() * float64(w.cfg.Rate); float64(acked) < wanted {
		faults = append(faults, fmt.Errorf("while NATS was away, %d messages were accepted; %.0f %% of the load would be %.0f", acked, 100*part, wanted))
	}
	return mended, errors.Join(faults...)
}

// skew runs a process with a wrong clock for a while, and kills it then: what it has left behind, with times of another
// hour, is for the others. People go on while the clock is wrong: all of them if it is a replica's, and somebody in each
// conversation if it is auth's, whose new tokens are of no use then.
func (w *world) skew(ctx context.Context, r round) (time.Time, error) {
	p := w.sys.Process(r.Targets[0])
	p.Kill9()
	p.SetClock(r.Offset)
	p.Start()
	wrong := time.Now()
	good := func() bool { return w.crowd.unserved(wrong, "") == 0 }
	if !replicated(r.Targets[0]) {
		good = func() bool { return w.crowd.talksSince(wrong) }
	}
	within, done := context.WithTimeout(ctx, r.For)
	served := until(within, good)
	done()
	pause(ctx, r.For-time.Since(wrong))
	p.Kill9()
	p.SetClock(0)
	mended := time.Now()
	p.Launch()
	if !served {
		return mended, fmt.Errorf("while the clock of %s was wrong, %s", r.Targets[0], w.crowd.gaps(wrong))
	}
	return mended, nil
}

// poison publishes events that cannot be taken. Others of the same types pass at
// once; whether the poison was parked is judged at the end.
func (w *world) poison(ctx context.Context) error {
	hopeless, curable, err := w.witness.poison(ctx)
	if err != nil {
		return err
	}
	w.hopeless = append(w.hopeless, hopeless)
	w.curable = append(w.curable, curable)
	published := time.Now()
	b, err := register(ctx, w.sys.Gateways)
	if err != nil {
		return err
	}
	w.accounts++
	if err := w.newcomer(ctx, b); err != nil { // to whom messaging knows by an event behind the poison
		return err
	}
	if took := time.Since(published); w.cfg.Duration > 0 && took > passWithin {
		return fmt.Errorf("behind the poisoned events, newcomers were known only after %s", took)
	}
	return nil
}

// newcomer does what needs every service: somebody registers, logs in on another device, renews the session, looks up a
// person and writes to them. Each step is tried until it succeeds, so the end is when the system serves newcomers.
func (w *world) newcomer(ctx context.Context, to *person) error {
	a, err := register(ctx, w.sys.Gateways)
	if err != nil {
		return err
	}
	w.accounts++
	if err := a.logIn(ctx); err != nil {
		return err
	}
	if err := a.refresh(ctx); err != nil {
		return err
	}
	if err := a.sees(ctx, to); err != nil {
		return err
	}
	conversation, err := a.talkTo(ctx, to)
	if err != nil {
		return err
	}
	w.conversations++
	if err := a.write(ctx, conversation, "hello"); err != nil {
		return err
	}
	w.messages++
	return nil
}

// replicated says whether there are two of a process.
func replicated(name string) bool {
	return strings.HasPrefix(name, "messaging") || strings.HasPrefix(name, "gateway")
}
