// Package limit counts how often something may happen: so many at once, and one
// more every so often.
//
// It owns: the count in Redis, which all replicas of a service share and which one
// script changes, so that a thousand calls at the same moment are not a thousand
// allowed ones; and the count that a process keeps for itself, for when Redis is
// away.
//
// Invariants: time is the caller's clock, never Redis's (replicas whose clocks
// differ by a second let through what a second earns); every key has a TTL; every
// command is about one key, so that it runs in a Redis Cluster.
//
// It never blocks: it says when to come again. It is no fence: what must not
// happen twice is held by the database.
package limit

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/rueidis"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// Away is what a limiter does while Redis cannot be asked.
type Away int

const (
	// Local counts in this process: a caller then has the limit once per replica.
	// For what protects the service; the usual choice.
	Local Away = iota + 1
	// Open allows everything. For what is only a courtesy.
	Open
	// Closed refuses everything. For what must not happen uncounted.
	Closed
)

// Options describe a limit. All fields have to be set.
type Options struct {
	// Name is part of the keys and of the metrics: "user.search".
	Name string
	// Burst is how many are allowed at once, and one more every Every.
	Burst int
	Every time.Duration
	Away  Away
}

const (
	// patience is the longest wait for Redis, pause for how long it is left alone
	// after it failed.
	patience = 500 * time.Millisecond
	pause    = 500 * time.Millisecond
	// warnEvery keeps an outage from filling the log.
	warnEvery = 10 * time.Second
	// longestKey is kept as it is; a longer one is hashed, since clients may choose it.
	longestKey = 128
)

//go:embed take.lua
var script string

// Limiter counts for one limit. It is safe for concurrent use.
type Limiter struct {
	opts    Options
	redis   rueidis.Client // nil: none
	script  *rueidis.Lua
	clock   clock.Clock
	log     *slog.Logger
	local   *local
	counted metric.Int64Counter
	started time.Time
	// awayUntil is when Redis is tried again, warned when that was last told, on
	// this process's stopwatch.
	awayUntil, warned atomic.Int64
}

// Decision is the answer to one Take.
type Decision struct {
	Allowed bool
	// RetryAfter is when it would be allowed, counted from now; 0 if it is.
	RetryAfter time.Duration
	// Left is how many more would be allowed now.
	Left int
	// Unknown: Redis was away and the limit is Closed.
	Unknown bool
}

// New makes a limiter. redis may be nil: it is away for good.
func New(redis rueidis.Client, clk clock.Clock, log *slog.Logger, opts Options) (*Limiter, error) {
	switch {
	case opts.Name == "":
		return nil, errors.New("a limit has no name")
	case opts.Burst < 1 || opts.Every < time.Microsecond:
		return nil, fmt.Errorf("limit %s allows %d, and one more every %s: nothing", opts.Name, opts.Burst, opts.Every)
	case opts.Away < Local || opts.Away > Closed:
		return nil, fmt.Errorf("limit %s does not say what it does without Redis", opts.Name)
	}
	counted, err := otel.Meter("github.com/parleychat/parley/pkg/limit").Int64Counter("limit_decisions_total",
		metric.WithDescription("Answers of rate limits: allowed or refused, with Redis or without."))
	if err != nil {
		return nil, fmt.Errorf("measure limit %s: %w", opts.Name, err)
	}
	return &Limiter{
		opts: opts, redis: redis, script: rueidis.NewLuaScript(script), clock: clk, log: log.With("limit", opts.Name),
		local: newLocal(opts), counted: counted, started: time.Now(),
	}, nil
}

// Check takes one for a key and returns nil, or RATE_LIMITED with the time to
// wait; UNAVAILABLE if the limit is Closed and Redis away.
func (l *Limiter) Check(ctx context.Context, key string) error {
	d, err := l.Take(ctx, key, 1)
	switch {
	case err != nil:
		return err
	case d.Allowed:
		return nil
	case d.Unknown:
		return rpc.WithRetryAfter(rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
			"this cannot be counted at the moment, try again later"), d.RetryAfter)
	default:
		return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED,
			"too many requests, try again later"), d.RetryAfter)
	}
}

// Take takes n for a key, all or none. The error says that the limit never allows
// n at once.
func (l *Limiter) Take(ctx context.Context, key string, n int) (Decision, error) {
	if n < 1 || n > l.opts.Burst {
		return Decision{}, fmt.Errorf("limit %s: %d at once is not between 1 and %d", l.opts.Name, n, l.opts.Burst)
	}
	if len(key) > longestKey {
		sum := sha256.Sum256([]byte(key))
		key = hex.EncodeToString(sum[:])
	}
	now := l.clock.Now()
	d, err := l.ask(ctx, key, n, now)
	with := "redis"
	if err != nil {
		l.rest(ctx, err)
		d, with = l.alone(key, n, now), "alone"
	} else if d.Allowed && l.opts.Away == Local {
		// If Redis goes away now, this process knows what it has seen.
		l.local.take(key, n, now)
	}
	result := "refused"
	if d.Allowed {
		result = "allowed"
	}
	l.counted.Add(ctx, 1, metric.WithAttributes(
		attribute.String("limit", l.opts.Name), attribute.String("result", result), attribute.String("by", with)))
	return d, nil
}

// errResting: Redis is left alone after an error.
var errResting = errors.New("redis was away a moment ago")

// ask takes from the count that all replicas share.
func (l *Limiter) ask(ctx context.Context, key string, n int, now time.Time) (Decision, error) {
	if l.redis == nil || int64(time.Since(l.started)) < l.awayUntil.Load() {
		return Decision{}, errResting
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := l.script.Exec(ctx, l.redis, []string{"limit:" + l.opts.Name + ":{" + key + "}"}, []string{
		strconv.FormatInt(now.UnixMicro(), 10), strconv.FormatInt(l.opts.Every.Microseconds(), 10),
		strconv.Itoa(l.opts.Burst), strconv.Itoa(n),
	}).AsIntSlice()
	if err == nil && len(answer) != 3 {
		err = fmt.Errorf("the script answers %d numbers", len(answer))
	}
	if err != nil {
		return Decision{}, err
	}
	return Decision{Allowed: answer[0] == 1, RetryAfter: time.Duration(answer[1]) * time.Microsecond, Left: int(answer[2])}, nil
}

// alone decides without Redis.
func (l *Limiter) alone(key string, n int, now time.Time) Decision {
	switch l.opts.Away {
	case Open:
		return Decision{Allowed: true, Left: l.opts.Burst - n}
	case Closed:
		return Decision{Unknown: true, RetryAfter: l.opts.Every}
	default:
		return l.local.take(key, n, now)
	}
}

// rest leaves Redis alone for a while after an error, unless the caller itself ran
// out of time.
func (l *Limiter) rest(ctx context.Context, err error) {
	if l.redis == nil || errors.Is(err, errResting) || ctx.Err() != nil {
		return
	}
	now := int64(time.Since(l.started))
	l.awayUntil.Store(now + int64(pause))
	if warned := l.warned.Load(); (warned == 0 || now-warned > int64(warnEvery)) && l.warned.CompareAndSwap(warned, now) {
		l.log.WarnContext(ctx, "Redis cannot be asked", "error", err)
	}
}
