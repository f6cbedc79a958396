package auth

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/rueidis"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

const (
	// attemptWindow is how long failures count, from the first of them.
	attemptWindow = 15 * time.Minute
	// attemptLease is how long an attempt under way holds its place when the process that runs it dies.
	attemptLease = 30 * time.Second
	// busyRetryAfter is the advice when only attempts under way are in the way.
	busyRetryAfter = time.Second
	// redisPatience is the longest wait for Redis before this process judges alone. A server that is gone
	// says so at once; this is for one that hangs, or is slow because everything is.
	redisPatience = time.Second
	// busyPatience is how long a call that may wait does so for attempts under way, and busyPause how often it looks.
	busyPatience = 2 * time.Second
	busyPause    = 20 * time.Millisecond
	// localSubjects bounds the memory of counting alone: about 100 bytes each.
	localSubjects = 50_000
	// localRoom is what is made when there is none: looking at all of them is paid for by as many new names.
	localRoom = localSubjects / 20
)

//go:embed attempts.lua
var attemptsScript string

// attempts limits how often a password may be guessed. An attempt takes its place before the password is
// compared and tells afterwards how it went, so a thousand guesses at the same moment are not a
// thousand allowed ones. All replicas count together in Redis, and each also counts what it sees itself:
// while Redis is away that count decides. A guesser then gets the limit once per replica, and nobody is
// locked out.
type attempts struct {
	redis  rueidis.Client
	script *rueidis.Lua
	clock  clock.Clock
	log    *slog.Logger

	mu    sync.Mutex
	local map[string]attemptCount
}

// newAttempts takes a nil client when the deployment has no Redis.
func newAttempts(redis rueidis.Client, clk clock.Clock, log *slog.Logger) *attempts {
	return &attempts{
		redis: redis, script: rueidis.NewLuaScript(attemptsScript), clock: clk, log: log,
		local: map[string]attemptCount{},
	}
}

// subject is what is counted: an account's name or an address.
type subject struct {
	key   string
	limit int
	// forgiven: a success forgets the failures before it. True for accounts; an address could
	// otherwise buy itself new guesses with an account of its own.
	forgiven bool
}

// attempt is one that may go on. It must be settled once.
type attempt struct {
	of       *attempts
	subjects []subject
}

// begin takes a place with every subject, or with none and returns RATE_LIMITED.
func (a *attempts) begin(ctx context.Context, subjects ...subject) (*attempt, error) {
	taken, verdict := a.take(ctx, subjects)
	if verdict.code != attemptAllowed {
		return nil, errTooManyAttempts(verdict.wait)
	}
	return taken, nil
}

// beginPatiently is begin for what is over in a moment: it waits while only attempts under way are in the way.
func (a *attempts) beginPatiently(ctx context.Context, subjects ...subject) (*attempt, error) {
	waiting, done := context.WithTimeout(ctx, busyPatience)
	defer done()
	for {
		taken, verdict := a.take(ctx, subjects)
		if verdict.code == attemptAllowed {
			return taken, nil
		}
		if verdict.code != attemptBusy || !pause(waiting, busyPause) {
			return nil, errTooManyAttempts(verdict.wait)
		}
	}
}

// pause waits; false says that ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func errTooManyAttempts(wait time.Duration) error {
	return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted,
		errorv1.Reason_REASON_RATE_LIMITED, "too many attempts, try again later"), wait)
}

// take takes a place with every subject, or with none and tells why.
func (a *attempts) take(ctx context.Context, subjects []subject) (*attempt, attemptVerdict) {
	taken := &attempt{of: a}
	for _, s := range subjects {
		if s.limit <= 0 {
			continue
		}
		verdict := a.step(ctx, s, stepOpen, 0)
		if verdict.code != attemptAllowed {
			taken.settle(ctx, attemptVoid)
			return nil, verdict
		}
		taken.subjects = append(taken.subjects, s)
	}
	return taken, attemptVerdict{}
}

// count takes one of what is limited by number, whatever comes of it; RATE_LIMITED if there is none left.
func (a *attempts) count(ctx context.Context, subjects ...subject) error {
	attempt, err := a.begin(ctx, subjects...)
	if err != nil {
		return err
	}
	attempt.settle(ctx, attemptFailed)
	return nil
}

// attemptResult is how an attempt ended.
type attemptResult int

const (
	// attemptVoid: nothing was compared. It counts for nothing.
	attemptVoid attemptResult = iota
	attemptFailed
	attemptSucceeded
)

// settle gives the places back and counts. It goes on after the caller has left: who hangs up early must
// not guess for free.
func (t *attempt) settle(ctx context.Context, result attemptResult) {
	ctx = context.WithoutCancel(ctx)
	for _, s := range t.subjects {
		add := 0
		switch {
		case result == attemptFailed:
			add = 1
		case result == attemptSucceeded && s.forgiven:
			add = clearFailures
		}
		t.of.step(ctx, s, stepClose, add)
	}
}

const (
	stepOpen  = "open"
	stepClose = "close"
	// clearFailures as the number to add sets it to zero.
	clearFailures = -1
)

// attemptVerdict is the answer to an opening.
type attemptVerdict struct {
	code int64
	wait time.Duration
}

const (
	attemptAllowed int64 = 0
	attemptRefused int64 = 1
	// attemptBusy: those under way fill the limit; most will give their place back.
	attemptBusy int64 = 2
)

// step counts in Redis, which decides, and notes the same here; or counts here alone.
func (a *attempts) step(ctx context.Context, s subject, step string, add int) attemptVerdict {
	if a.redis == nil {
		return a.stepLocal(a.clock.Now(), s, step, add)
	}
	verdict, err := a.stepShared(ctx, s, step, add)
	switch {
	case err != nil:
		// A place taken in Redis before runs out by its lease.
		a.log.WarnContext(ctx, "attempts are counted by this process alone", "error", err)
		return a.stepLocal(a.clock.Now(), s, step, add)
	case step == stepClose:
		a.stepLocal(a.clock.Now(), s, stepClose, add)
	case verdict.code == attemptAllowed:
		a.stepLocal(a.clock.Now(), subject{key: s.key, limit: math.MaxInt}, stepOpen, 0) // noted, whatever stood here
	}
	return verdict
}

func (a *attempts) stepShared(ctx context.Context, s subject, step string, add int) (attemptVerdict, error) {
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	reply, err := a.script.Exec(ctx, a.redis, []string{"auth:attempts:" + s.key}, []string{
		step, millis(a.clock.Now().UnixMilli()), millis(attemptWindow.Milliseconds()), millis(attemptLease.Milliseconds()),
		strconv.Itoa(s.limit), strconv.Itoa(add),
	}).AsIntSlice()
	if err != nil {
		return attemptVerdict{}, fmt.Errorf("count an attempt in Redis: %w", err)
	}
	if len(reply) != 2 {
		return attemptVerdict{}, errors.New("count an attempt in Redis: the script answered out of shape")
	}
	return attemptVerdict{code: reply[0], wait: time.Duration(reply[1]) * time.Millisecond}, nil
}

func millis(n int64) string { return strconv.FormatInt(n, 10) }

func (a *attempts) stepLocal(now time.Time, s subject, step string, add int) attemptVerdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	count, known := a.local[s.key]
	if !known && len(a.local) >= localSubjects {
		a.makeRoom(now)
	}
	var verdict attemptVerdict
	if step == stepOpen {
		count, verdict = count.opened(now, s.limit)
	} else {
		count = count.closed(now, add)
	}
	a.local[s.key] = count
	return verdict
}

// makeRoom drops what has run out, and whatever it meets until there is room for a while: memory and time stay bounded
// under a flood of invented names, at the price that some names are forgotten while Redis is away.
func (a *attempts) makeRoom(now time.Time) {
	for key, count := range a.local {
		if now.Sub(count.start) >= attemptWindow && now.Sub(count.newest) >= attemptLease {
			delete(a.local, key)
		}
	}
	for key := range a.local {
		if len(a.local) <= localSubjects-localRoom {
			return
		}
		delete(a.local, key)
	}
}

// attemptCount is the state of one subject. attempts.lua holds the same rules, step for step; one test
// runs both.
type attemptCount struct {
	start  time.Time
	failed int
	open   int
	newest time.Time
}

// fresh forgets what has run out.
func (c attemptCount) fresh(now time.Time) attemptCount {
	if now.Sub(c.start) >= attemptWindow {
		c.start, c.failed = now, 0
	}
	if now.Sub(c.newest) >= attemptLease {
		c.open = 0
	}
	return c
}

func (c attemptCount) opened(now time.Time, limit int) (attemptCount, attemptVerdict) {
	c = c.fresh(now)
	if c.failed >= limit {
		return c, attemptVerdict{code: attemptRefused, wait: c.start.Add(attemptWindow).Sub(now)}
	}
	if c.failed+c.open >= limit {
		return c, attemptVerdict{code: attemptBusy, wait: busyRetryAfter}
	}
	if c.failed == 0 {
		c.start = now
	}
	c.open++
	c.newest = now
	return c, attemptVerdict{}
}

func (c attemptCount) closed(now time.Time, add int) attemptCount {
	c = c.fresh(now)
	c.open = max(c.open-1, 0)
	if add == clearFailures {
		c.failed = 0
	} else {
		c.failed += add
	}
	return c
}
