package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

const (
	// frozenFor and cutFor are how long a process is stopped and a network is cut.
	frozenFor = 10 * time.Second
	cutFor    = 20 * time.Second
	// A replica is stopped for longer than a transaction may rest, which is ten seconds: what it holds is given up
	// meanwhile, and the rest of the time shows it. Beside a cut there is less time.
	frozenLong, frozenMeanwhile = 25 * time.Second, 15 * time.Second
	// wrongFor is how long a process runs with a wrong clock.
	wrongFor = 10 * time.Second
	// passWithin is how long newcomers may take behind poisoned events.
	passWithin = 5 * time.Second
	hour       = time.Hour
)

// round is one fault, or some at once, with the parameters that the seed gave.
type round struct {
	// Kind is the fault.
	Kind kind
	// Targets are names of processes and servers.
	Targets []string
	// After is the pause before the fault, so that it strikes at any moment; For is
	// how long it lasts.
	After, For time.Duration
	// Offset of the clock.
	Offset time.Duration
}

func (r round) String() string {
	text := strings.Join(append([]string{string(r.Kind)}, r.Targets...), " ")
	if r.Offset != 0 {
		text += fmt.Sprintf(" by %s", r.Offset)
	}
	return text + fmt.Sprintf(", for %s", r.For.Round(100*time.Millisecond))
}

// kind names a fault.
type kind string

// The kinds of faults.
const (
	kill   kind = "kill"        // SIGKILL, then a new start
	freeze kind = "freeze"      // SIGSTOP
	cut    kind = "cut"         // a gateway's connections to NATS break, new ones are refused
	hang   kind = "hang"        // nothing goes through between a gateway and NATS, and nothing breaks
	away   kind = "away"        // NATS is down
	wipe   kind = "wipe"        // NATS starts again without its storage
	poison kind = "poison"      // an event that no listener can take
	skew   kind = "wrong clock" // of one process
)

// planner makes rounds from a seed. The same seed gives the same rounds.
type planner struct {
	random *rand.Rand
	// once are the kinds of which every run has at least one, in a random order.
	once []kind
	// victims are dealt like cards, so that nobody is spared for long.
	victims []string
	n       int
	// longAway is how long NATS is away the first time.
	longAway time.Duration
}

func newPlanner(seed uint64, longAway time.Duration) *planner {
	p := &planner{random: rand.New(rand.NewPCG(seed, seed)), longAway: longAway}
	p.once = []kind{wipe, away, poison, skew, skew, cut, hang, freeze}
	p.random.Shuffle(len(p.once), func(i, j int) { p.once[i], p.once[j] = p.once[j], p.once[i] })
	return p
}

// killable is everything that has a process.
var killable = []string{"auth", "user", "messaging-1", "messaging-2", "gateway-1", "gateway-2", "nats", "redis", "postgres"}

// freezable are those that have a replica, and servers that hang.
var freezable = []string{"messaging-1", "messaging-2", "messaging-1", "messaging-2", "gateway-1", "gateway-2", "auth", "user", "nats", "redis"}

// next is the next round: kills mostly, and between them what happens less often.
func (p *planner) next() round {
	p.n++
	r := round{Kind: kill, After: rand2(p.random, 0, time.Second)}
	if p.n%2 == 0 {
		if len(p.once) > 0 {
			r.Kind, p.once = p.once[0], p.once[1:]
		} else {
			r.Kind = []kind{freeze, freeze, cut, hang, away, wipe, poison, skew}[p.random.IntN(8)]
		}
	}
	p.fill(&r)
	return r
}

func (p *planner) fill(r *round) {
	one := func(names ...string) []string { return []string{names[p.random.IntN(len(names))]} }
	switch r.Kind {
	case kill:
		r.For = rand2(p.random, 200*time.Millisecond, 3*time.Second)
		r.Targets = []string{p.victim()}
		if p.random.IntN(4) == 0 { // two at once
			if other := one(killable...); other[0] != r.Targets[0] {
				r.Targets = append(r.Targets, other...)
			}
		}
	case freeze:
		r.Targets, r.For = one(freezable...), frozenFor
		if replicated(r.Targets[0]) {
			r.For = frozenLong
		}
	case cut, hang:
		r.Targets, r.For = one("gateway-1", "gateway-2"), cutFor
	case away:
		r.Targets, r.For = []string{"nats"}, cutFor
		if p.longAway > 0 {
			r.For, p.longAway = p.longAway, 0
		}
	case wipe:
		r.Targets = []string{"nats"}
	case poison:
	case skew:
		r.Targets, r.For, r.Offset = one("messaging-1", "messaging-2", "messaging-1", "messaging-2", "auth"), wrongFor, hour
		// Tokens of an auth that is ahead look good to whoever holds them and to nobody else; here people only renew those
		// that look old.
		if p.random.IntN(2) == 0 || r.Targets[0] == "auth" {
			r.Offset = -hour
		}
	}
}

// victim deals the next card.
func (p *planner) victim() string {
	if len(p.victims) == 0 {
		p.victims = slices.Clone(killable)
		p.random.Shuffle(len(p.victims), func(i, j int) { p.victims[i], p.victims[j] = p.victims[j], p.victims[i] })
	}
	name := p.victims[0]
	p.victims = p.victims[1:]
	return name
}

// short is the plan of every day, in about a minute: each kind once, a replica
// freezes while a gateway is cut from NATS. The seed chooses victims and moments.
func short(seed uint64) []round {
	p := newPlanner(seed, 0)
	one := func(names ...string) string { return names[p.random.IntN(len(names))] }
	plan := []round{
		{Kind: poison},
		{Kind: kill, Targets: []string{one("messaging-1", "messaging-2"), "redis"}, For: time.Second},
		{Kind: skew},
		{Kind: kill, Targets: []string{one("gateway-1", "gateway-2"), "auth", "user"}, For: time.Second},
		{Kind: kill, Targets: []string{"postgres"}, For: time.Second},
		{Kind: []kind{cut, hang}[p.random.IntN(2)], Targets: []string{one("gateway-1", "gateway-2"), one("messaging-1", "messaging-2")}, For: cutFor},
		{Kind: away},
		{Kind: wipe},
	}
	for i := range plan {
		plan[i].After = rand2(p.random, 0, 500*time.Millisecond)
		if plan[i].Targets == nil {
			p.fill(&plan[i])
		}
	}
	return plan
}

// rand2 is a random time between two.
func rand2(random *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(random.Int64N(int64(to-from)))
}
