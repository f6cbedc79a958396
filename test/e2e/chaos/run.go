package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/parleychat/parley/pkg/history"
	"github.com/parleychat/parley/test/e2e/system"
)

// Config is a run.
type Config struct {
	Seed uint64
	// Duration is for how long rounds are begun. 0: the short plan.
	Duration time.Duration
	// LongAway is how long NATS is away the first time in a long run. 0: 20 s.
	LongAway time.Duration
	// Pairs of people with two devices each, and their messages a second.
	Pairs, Rate int
	// IdleInterval is the gateways' advice after how much silence a client syncs.
	IdleInterval time.Duration
	// RecoverWithin is how long after each round the system may take to serve
	// everybody again.
	RecoverWithin time.Duration
	// Result is told of each round as soon as it is judged.
	Result func(Result)
}

// Result is one round.
type Result struct {
	Round int    `json:"round"`
	Fault string `json:"fault"`
	// Recovery is from the moment when the fault was over until everybody had sent,
	// got the acknowledgement, and seen what the others sent, and a newcomer could register, log in, renew the session,
	// look up a profile and write. Newcomer is the time of that alone. Settled is until the witness had been told of everything.
	Recovery float64 `json:"recovery_s"`
	Newcomer float64 `json:"newcomer_s"`
	Settled  float64 `json:"settled_s"`
	// Last is what was missing last.
	Last string `json:"last_missing,omitempty"`
	// Repair is, after a cut, the time until every device showed everything though
	// nobody sent anything any more.
	Repair float64 `json:"repair_s,omitempty"`
	// Behind is how many devices were, when the cut ended.
	Behind int `json:"behind,omitempty"`
	// Replayed are the messages that a wiped stream holds again.
	Replayed int `json:"replayed,omitempty"`
	// Resets are devices that the server told to forget what they had.
	Resets int64 `json:"resets,omitempty"`
	// Load is the machine's load average when the round ended.
	Load string `json:"load_average"`
	// Silence is the longest time without any acknowledgement, in the round.
	Silence float64 `json:"longest_silence_s"`
	// Acked and Retried are messages in the round, with what failed at first tries.
	Acked   int64 `json:"acked"`
	Retried int64 `json:"retried"`
	// Messages were judged: all since the start.
	Messages int      `json:"messages"`
	Wrong    []string `json:"wrong,omitempty"`
}

// window is a span of time.
type window struct{ from, to time.Time }

// world is a run.
type world struct {
	cfg     Config
	sys     *system.System
	crowd   *crowd
	witness *witness

	// accounts, conversations and messages are how many there are, besides the poisoned and the crowd's messages.
	accounts, conversations, messages int
	hopeless, curable                 []string
	// backlog is when NATS was away in this round.
	backlog *window
	// repaired is how long after a cut, in this round, devices took to be right
	// though nobody said anything.
	repaired time.Duration
	// behind is how many devices were when the network came back, wiped whether the streams are new, in this round.
	behind int
	wiped  bool
	// crashed counts the rounds since PostgreSQL was killed, which makes devices forget.
	crashed int
}

// Run starts the system, breaks it round by round, and reports every promise that
// was broken as an error of the test.
func Run(t testing.TB, cfg Config) []Result {
	t.Helper()
	w, err := open(t, cfg)
	if err != nil {
		t.Fatalf("gather the crowd: %v", err)
	}
	w.crowd.start(t, cfg.Rate)
	begun := time.Now()
	if !until(t.Context(), func() bool { return w.crowd.serves(begun) }) {
		t.Fatalf("the system does not serve at all: %s", w.crowd.gaps(begun))
	}
	var results []Result
	for _, r := range rounds(cfg) {
		if cfg.Duration > 0 && time.Since(begun) >= cfg.Duration {
			break
		}
		result := w.play(t, len(results)+1, r)
		results = append(results, result)
		if cfg.Result != nil {
			cfg.Result(result)
		}
		for _, wrong := range result.Wrong {
			t.Errorf("seed %d, round %d (%s): %s", cfg.Seed, result.Round, result.Fault, wrong)
		}
		if judged := time.Now(); len(result.Wrong) > 0 && !until(t.Context(), func() bool { return w.crowd.serves(judged) }) {
			return results // nothing can be judged any more
		}
	}
	if err := w.finish(t.Context()); err != nil {
		t.Errorf("seed %d, at the end: %v", cfg.Seed, err)
	}
	return results
}

// rounds is the plan. A long one is longer than any run.
func rounds(cfg Config) []round {
	if cfg.Duration == 0 {
		return short(cfg.Seed)
	}
	p := newPlanner(cfg.Seed, cfg.LongAway)
	plan := make([]round, 1+int(cfg.Duration/time.Second))
	for i := range plan {
		plan[i] = p.next()
	}
	return plan
}

func open(t testing.TB, cfg Config) (*world, error) {
	t.Helper()
	w := &world{cfg: cfg, sys: system.Start(t, system.Separate, system.Options{IdleInterval: cfg.IdleInterval})}
	var err error
	if w.witness, err = newWitness(t, w.sys); err != nil {
		return nil, err
	}
	if w.crowd, err = gather(t, w.sys, cfg.Pairs); err != nil {
		return nil, err
	}
	w.accounts, w.conversations = 2*cfg.Pairs, cfg.Pairs
	return w, nil
}

// play inflicts one fault, measures the recovery, and judges.
func (w *world) play(t testing.TB, number int, r round) Result {
	t.Helper()
	ctx := t.Context()
	res := Result{Round: number, Fault: r.String()}
	wrong := func(err error) {
		if err != nil {
			res.Wrong = append(res.Wrong, err.Error())
		}
	}
	acked, retried := w.crowd.acked.Load(), w.crowd.retried.Load()
	w.begin(r)
	if r.Kind == wipe {
		// Dead letters are in what is wiped. Those of real events come again with
		// them from the outbox; ours were never in one.
		wrong(w.judgePoison(ctx))
	}
	mended, err := w.inflict(ctx, r)
	wrong(err)
	wrong(w.recovers(ctx, mended, &res))
	w.sys.AwaitReady()
	if !w.crowd.home(ctx) {
		wrong(errors.New("not every device comes back to its own gateway"))
	}
	res.Repair, res.Behind = w.repaired.Seconds(), w.behind
	if res.Resets = w.crowd.resets.Swap(0); res.Resets > 0 && w.crashed > 1 {
		wrong(fmt.Errorf("%d devices were told to forget what they had, and PostgreSQL was not killed", res.Resets))
	}
	res.Silence = time.Duration(w.crowd.longest.Load()).Seconds()
	res.Acked, res.Retried = w.crowd.acked.Load()-acked, w.crowd.retried.Load()-retried
	wrong(w.crowd.quiet(ctx, func() error {
		res.Messages = w.crowd.messages()
		err := w.judge(ctx)
		if w.wiped {
			var rerr error
			res.Replayed, rerr = w.witness.replayed(ctx, w.crowd.messages()+w.messages)
			err = errors.Join(err, rerr)
		}
		return err
	}))
	res.Settled = time.Since(mended).Seconds()
	res.Load = loadAverage()
	return res
}

// begin forgets what belongs to the round before.
func (w *world) begin(r round) {
	w.crowd.longest.Store(0)
	w.backlog, w.repaired, w.behind, w.wiped = nil, 0, 0, false
	w.crashed++
	if r.Kind == kill && slices.Contains(r.Targets, "postgres") {
		w.crashed = 0
	}
}

// recovers waits until the system serves the crowd and a newcomer, and says what is wrong with that.
func (w *world) recovers(ctx context.Context, mended time.Time, res *Result) error {
	newcomer := make(chan error, 1)
	to := w.crowd.talks[res.Round%len(w.crowd.talks)].members[0]
	go func() { newcomer <- measured(&res.Newcomer, mended, func() error { return w.newcomer(ctx, to) }) }()
	recovered := until(ctx, func() bool {
		g := w.crowd.gaps(mended)
		if g != (gaps{}) {
			res.Last = g.String()
		}
		return g == gaps{}
	})
	res.Recovery = time.Since(mended).Seconds()
	if err := <-newcomer; err != nil {
		return fmt.Errorf("a newcomer: %w", err)
	}
	res.Recovery = max(res.Recovery, res.Newcomer)
	if !recovered {
		return fmt.Errorf("%s after the fault: %s", patience, w.crowd.gaps(mended))
	}
	if res.Recovery > w.cfg.RecoverWithin.Seconds() {
		return fmt.Errorf("the recovery took %.1f s, more than %s (the newcomer %.1f s)", res.Recovery, w.cfg.RecoverWithin, res.Newcomer)
	}
	return nil
}

// measured runs fn and stores the seconds from a moment to its end.
func measured(into *float64, from time.Time, fn func() error) error {
	err := fn()
	*into = time.Since(from).Seconds()
	return err
}

// judge requires that every promise was kept up to now. The crowd is quiet.
func (w *world) judge(ctx context.Context) error {
	faults := []error{w.crowd.refusals()}
	for _, v := range history.Check(w.crowd.history()) {
		faults = append(faults, errors.New(v.String()))
	}
	faults = append(faults, w.witness.check(ctx, map[string]int{
		"account.registered": w.accounts, "user.created": w.accounts,
		"conversation.created": w.conversations, "message.created": w.crowd.messages() + w.messages,
	}))
	if w.backlog != nil {
		faults = append(faults, w.witness.oldestFirst(ctx, *w.backlog))
	}
	return errors.Join(faults...)
}

// finish judges what needs time, and everything once more from the beginning.
func (w *world) finish(ctx context.Context) error {
	errPoison := w.judgePoison(ctx)
	w.crowd.forgetLogs()
	return errors.Join(errPoison, w.crowd.quiet(ctx, func() error { return w.judge(ctx) }))
}

// judgePoison requires that every poisoned event was parked by all whom it made
// sick, and that the witness, once it is well, takes those that it can by a
// replay.
func (w *world) judgePoison(ctx context.Context) error {
	var faults []error
	for _, key := range w.hopeless {
		for _, service := range []string{"user", "messaging", witnessName} {
			faults = append(faults, w.witness.parked(ctx, service, key))
		}
	}
	for _, key := range w.curable {
		faults = append(faults, w.witness.parked(ctx, witnessName, key))
	}
	faults = append(faults, w.witness.cure(ctx, w.curable))
	w.hopeless, w.curable = nil, nil
	return errors.Join(faults...)
}
