package presence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"
)

const (
	// gather is how long changes are collected, so that a person who reconnects, or
	// many who come at once, are one report.
	gather = 50 * time.Millisecond
	// reportPeople go into one report: about a millisecond of Redis's time.
	reportPeople = 200
	// redisTimeout bounds one command.
	redisTimeout = 3 * time.Second
	// redisPause is between two tries while Redis is away.
	redisPause = time.Second
	// maxChanged changes of a shard wait while Redis is away. Beyond it the shard is
	// written anew, under another lease, and the old one swept.
	maxChanged = 50_000
	// rollEvery is how often everybody is written again, a shard at a time, whether
	// changed or not. It also keeps a Redis that is full of caches from giving up the
	// keys of people of whom there is nothing new. With 100,000 people connected here
	// it is a report each second.
	rollEvery = 10 * time.Minute
)

// ReporterConfig is what a gateway hands over.
type ReporterConfig struct {
	Redis rueidis.Client
	// NATS wakes the user service after a report. May be away.
	NATS *nats.Conn
	Log  *slog.Logger
	// Devices gives the sessions of a person that are connected here. It must not
	// block and not call back.
	Devices func(user uuid.UUID) []Device
	// Each visits everybody of a shard who is connected here, by the same rules. Both
	// are called for several shards at once.
	Each func(shard int, visit func(user uuid.UUID))
	// Lease is how long a gateway may be silent before its people count as gone; it
	// beats three times within it.
	Lease time.Duration
}

// Reporter writes down who is connected to one gateway. Make it with NewReporter
// and run it with Run, once; Changed may be called from anywhere.
//
// While Redis is away it only collects. What it could not write it writes when
// Redis is back, everything if it has to.
type Reporter struct {
	cfg    ReporterConfig
	wake   chan struct{}
	shards [Shards]reporterShard
	// Of Run alone.
	away     bool
	rollAt   time.Time
	rollNext int
}

type reporterShard struct {
	keys shardKeys

	mu      sync.Mutex
	changed map[uuid.UUID]struct{}
	lost    bool // too much has changed to know it all

	// Of Run alone, and of the one flush that runs for it: the lease ("" = none) and
	// the number of the last report.
	lease  string
	number int64
}

// NewReporter makes a reporter.
func NewReporter(cfg ReporterConfig) *Reporter {
	r := &Reporter{cfg: cfg, wake: make(chan struct{}, 1)}
	for i := range r.shards {
		r.shards[i].keys = keysOf(i)
		r.shards[i].changed = make(map[uuid.UUID]struct{})
	}
	return r
}

// Changed says that the devices of a person are others than before. It never
// blocks.
func (r *Reporter) Changed(user uuid.UUID) {
	r.shards[ShardOf(user)].change(user)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (s *reporterShard) change(user uuid.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.changed) >= maxChanged {
		s.lost = true
		return
	}
	s.changed[user] = struct{}{}
}

// Run reports until ctx ends, then reports what is left and ends its leases. It
// returns nil.
func (r *Reporter) Run(ctx context.Context) error {
	beat := time.NewTicker(max(r.cfg.Lease/3, time.Millisecond))
	defer beat.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	r.rollAt = time.Now().Add(rollEvery / Shards)
	for {
		var beaten error
		select {
		case <-ctx.Done():
			r.leave(ctx)
			return nil
		case <-beat.C:
			// What does not beat is no reason to write nothing: it may be one node of many.
			beaten = r.beat(ctx)
			r.roll()
		case <-retry.C:
		case <-r.wake:
			if r.away || !pause(ctx, gather) {
				continue // retry is set, or ctx has ended
			}
		}
		err := errors.Join(beaten, r.flush(ctx))
		r.tell(ctx, err)
		if err != nil {
			retry.Reset(redisPause)
		}
	}
}

// tell logs when Redis goes and comes back, not every try.
func (r *Reporter) tell(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !r.away:
		r.cfg.Log.WarnContext(ctx, "presence is not reported: Redis is away", "error", err)
	case err == nil && r.away:
		r.cfg.Log.InfoContext(ctx, "presence is reported again")
	}
	r.away = err != nil
}

// flush reports what has changed, all shards at once: in a cluster they stand on
// several nodes, and one that is away must not hold up the others. After an error
// the rest of the shard waits.
func (r *Reporter) flush(ctx context.Context) error {
	var reported atomic.Bool
	var errs [Shards]error
	var shards sync.WaitGroup
	for i := range r.shards {
		if !r.shards[i].wantsFlush() {
			continue
		}
		shards.Go(func() {
			some, err := r.flushShard(ctx, i)
			if errs[i] = err; some {
				reported.Store(true)
			}
		})
	}
	shards.Wait()
	if reported.Load() && r.cfg.NATS != nil {
		// A hint: the user service looks by itself every second.
		_ = r.cfg.NATS.Publish(DueSubject, nil)
	}
	return errors.Join(errs[:]...)
}

// wantsFlush says whether there is anything to do.
func (s *reporterShard) wantsFlush() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease == "" || s.lost || len(s.changed) > 0
}

func (r *Reporter) flushShard(ctx context.Context, shard int) (reported bool, err error) {
	s := &r.shards[shard]
	for {
		if s.takeLost() {
			s.lease = "" // whoever is not written again is swept with the old one
		}
		if s.lease == "" {
			if err := r.open(ctx, shard); err != nil {
				return reported, err
			}
		}
		people := s.take(reportPeople)
		if len(people) == 0 {
			return reported, nil
		}
		ok, err := r.report(ctx, s, people)
		if err != nil || !ok {
			for _, user := range people {
				s.change(user)
			}
		}
		if err != nil {
			return reported, err
		}
		if !ok {
			s.lease = "" // it has ended, or Redis has lost a report: see reportScript
			continue
		}
		reported = true
	}
}

func (s *reporterShard) takeLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.lost
	s.lost = false
	if lost {
		clear(s.changed)
	}
	return lost
}

func (s *reporterShard) take(most int) []uuid.UUID {
	s.mu.Lock()
	defer s.mu.Unlock()
	people := make([]uuid.UUID, 0, min(most, len(s.changed)))
	for user := range s.changed {
		if len(people) == most {
			break
		}
		people = append(people, user)
		delete(s.changed, user)
	}
	return people
}

// open begins a lease under a new name and has everybody of the shard written
// under it. Never under the old name: the user service may be taking back what
// stands under that.
func (r *Reporter) open(ctx context.Context, shard int) error {
	s := &r.shards[shard]
	lease := uuid.NewString()
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	err := openScript.Exec(ctx, r.cfg.Redis, []string{s.keys.lease(lease), s.keys.leases()},
		[]string{lease, milliseconds(r.cfg.Lease), milliseconds(rollLife)}).Error()
	if err != nil {
		return fmt.Errorf("open a lease: %w", err)
	}
	s.lease, s.number = lease, 0
	r.cfg.Each(shard, s.change)
	return nil
}

// report writes people down; false if there is no such lease any more, or not with
// all reports before this one. After an error it is not known whether it was written:
// then the next one is refused, and the shard is written anew. The devices
// are read here, after the people were taken: a change from now on is another
// report.
func (r *Reporter) report(ctx context.Context, s *reporterShard, people []uuid.UUID) (ok bool, err error) {
	s.number++
	args := append(make([]string, 0, 5+2*len(people)),
		strconv.FormatInt(s.number, 10), milliseconds(r.cfg.Lease), s.keys.user(), s.lease, milliseconds(rollLife))
	for _, user := range people {
		args = append(args, user.String(), encodeDevices(r.cfg.Devices(user)))
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	result, err := reportScript.Exec(ctx, r.cfg.Redis,
		[]string{s.keys.lease(s.lease), s.keys.of(s.lease), s.keys.due()}, args).AsInt64()
	if err != nil {
		return false, fmt.Errorf("report: %w", err)
	}
	return result == 1, nil
}

// beat prolongs the leases, all in one round trip. One that has ended, or lacks
// reports, is replaced by the flush that follows. What is wrong with one shard does
// not concern the others.
func (r *Reporter) beat(ctx context.Context) error {
	var beats []rueidis.LuaExec
	var of []*reporterShard
	for i := range r.shards {
		s := &r.shards[i]
		if s.lease == "" {
			continue
		}
		of = append(of, s)
		beats = append(beats, rueidis.LuaExec{
			Keys: []string{s.keys.lease(s.lease), s.keys.leases(), s.keys.of(s.lease)},
			Args: []string{milliseconds(r.cfg.Lease), milliseconds(rollLife), strconv.FormatInt(s.number, 10)},
		})
	}
	if len(beats) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	var errs []error
	for i, res := range beatScript.ExecMulti(ctx, r.cfg.Redis, beats...) {
		switch alive, err := res.AsInt64(); {
		case err != nil:
			errs = append(errs, fmt.Errorf("prolong a lease: %w", err))
		case alive == 0:
			of[i].lease = ""
		}
	}
	return errors.Join(errs...)
}

// roll has one shard after the other written again.
func (r *Reporter) roll() {
	if now := time.Now(); now.After(r.rollAt) {
		r.rollAt = now.Add(rollEvery / Shards)
		r.cfg.Each(r.rollNext, r.shards[r.rollNext].change)
		r.rollNext = (r.rollNext + 1) % Shards
	}
}

// leave is the orderly end: who is gone is written down, who is not is swept at
// once and not only when the lease runs out.
func (r *Reporter) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redisTimeout)
	defer cancel()
	err := r.flush(ctx)
	for i := range r.shards {
		s := &r.shards[i]
		if s.lease == "" || ctx.Err() != nil {
			continue
		}
		err = errors.Join(err, closeScript.Exec(ctx, r.cfg.Redis, []string{s.keys.lease(s.lease)}, nil).Error())
	}
	if err != nil {
		r.cfg.Log.DebugContext(ctx, "the leases of presence run out by themselves", "error", err)
	}
}

// pause waits unless ctx ends first.
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
