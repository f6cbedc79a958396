package user

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/presence"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

// The types of the signals.
const (
	typeUserOnline  = "user.online"
	typeUserOffline = "user.offline"
)

var errNoRoll = errors.New("there is no Redis")

const (
	// judgePeople are looked at in one transaction.
	judgePeople = 256
	// judgeHold is for how long they are one replica's: if it dies, another looks
	// at them then.
	judgeHold = 10 * time.Second
	// lookEvery is between two looks at the roll without a wake-up: what is due by
	// time is so late at most. lookPause is the least time between two.
	lookEvery = time.Second
	lookPause = 200 * time.Millisecond
	// judgeTimeout bounds what is done for one claim.
	judgeTimeout = 5 * time.Second
	// judgesAtOnce of the shards use the database, and lookClaims are worked off of
	// each in one look: the sweeps come to their turn while many are due.
	judgesAtOnce = 4
	lookClaims   = 16
	// auditPeople are looked for in the roll at once, auditEvery. Who is missing has
	// auditWait to be written down again by the gateway that knows better.
	auditPeople = 500
	auditEvery  = 5 * time.Minute
	auditWait   = 10 * time.Second
	// forgetEvery is between two looks for rows of people who were deleted within
	// forgetFor.
	forgetEvery = 5 * time.Minute
	forgetFor   = 24 * time.Hour
)

// judge reads the roll and decides who came and who went. Every replica runs one;
// they share the work by claims.
//
// The order of its steps is what a crash cannot break: claim, commit, tell, settle.
// Who was claimed and not settled is claimed again, and told again whatever the
// tables say by then.
type judge struct {
	*sightings

	bus         *event.Bus
	grace       time.Duration
	transitions metric.Int64Counter
	wake        chan struct{}
	places      chan struct{} // of judgesAtOnce
	shards      [presence.Shards]shardState
	away        atomic.Int32 // shards
}

// shardState is how far the looks at one shard are. away is of the look that is busy.
type shardState struct {
	busy, missed atomic.Bool
	away         bool
}

func newJudge(s *sightings, bus *event.Bus, grace time.Duration) (*judge, error) {
	transitions, err := otel.Meter("github.com/parleychat/parley/services/user").Int64Counter("user_presence_transitions_total",
		metric.WithDescription("People who came online and went offline."))
	if err != nil {
		return nil, fmt.Errorf("make user_presence_transitions_total: %w", err)
	}
	return &judge{
		sightings: s, bus: bus, grace: grace, transitions: transitions,
		wake: make(chan struct{}, 1), places: make(chan struct{}, judgesAtOnce),
	}, nil
}

// run looks at the roll whenever a gateway has written something, and every second,
// until ctx ends.
func (j *judge) run(ctx context.Context) error {
	sub, err := j.conn.QueueSubscribe(presence.DueSubject, "user", func(*nats.Msg) { j.again() })
	if err != nil {
		return fmt.Errorf("subscribe to reports: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // a closed connection has none left
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	var looks sync.WaitGroup
	defer looks.Wait()
	sweep := true
	for {
		select { // not too often
		case <-rest.C:
		case <-ctx.Done():
			return nil
		}
		j.look(ctx, &looks, sweep)
		rest.Reset(lookPause)
		select {
		case <-tick.C:
			sweep = true
		case <-j.wake:
			sweep = false
		case <-ctx.Done():
			return nil
		}
	}
}

// again has the next look begin soon.
func (j *judge) again() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// look has each shard looked at, unless the last look at it still goes on; then once
// more after that. None waits for another: they may stand on several nodes, and one
// that is away, or has much to do, must not hold up the others.
func (j *judge) look(ctx context.Context, looks *sync.WaitGroup, sweep bool) {
	for shard := range presence.Shards {
		state := &j.shards[shard]
		if !state.busy.CompareAndSwap(false, true) {
			state.missed.Store(true)
			continue
		}
		looks.Go(func() {
			state.missed.Store(false)
			j.tell(ctx, state, j.lookAt(ctx, shard, sweep))
			state.busy.Store(false)
			if state.missed.Load() {
				j.again()
			}
		})
	}
}

// tell logs when the work stops and goes on, not every try, and not for each shard.
func (j *judge) tell(ctx context.Context, state *shardState, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil && state.away && j.away.Add(-1) == 0:
		j.log.InfoContext(ctx, "presence is known again")
	case err != nil && !state.away && j.away.Add(1) == 1:
		j.log.WarnContext(ctx, "presence stands still", "error", err)
	}
	state.away = err != nil
}

// lookAt does what is due in one shard, up to a bound. What was told about its
// people counts from each step on: that there is more to do makes nobody unknown.
func (j *judge) lookAt(ctx context.Context, shard int, sweep bool) error {
	for sweep {
		swept, err := j.roster.Sweep(ctx, shard)
		if err != nil {
			return err
		}
		if swept == 0 {
			break
		}
		j.log.InfoContext(ctx, "a gateway is gone: its people are taken back", "people", swept)
	}
	for range lookClaims {
		claims, err := j.roster.Claim(ctx, shard, j.clock.Now(), judgeHold, judgePeople)
		if err == nil {
			err = j.judge(ctx, shard, claims)
		}
		if err != nil {
			return err
		}
		j.looked[shard].Store(time.Now().UnixNano()) //nolint:forbidigo // for how long ago it was, whatever happens to the clock
		if len(claims) < judgePeople {
			return nil
		}
	}
	j.again()
	return nil
}

// judge decides about claims of a shard.
func (j *judge) judge(ctx context.Context, shard int, claims []presence.Claim) error {
	if len(claims) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	select {
	case j.places <- struct{}{}:
		defer func() { <-j.places }()
	case <-ctx.Done():
		return ctx.Err()
	}
	now := j.clock.Now()
	verdicts, changes, err := j.commit(ctx, claims, now)
	if err != nil {
		return err
	}
	var signals []*realtimev1.PresenceSignal
	var events []*eventv1.Event
	for _, c := range changes {
		if c.deleted {
			signals = append(signals, lastSignal(c.next.user))
			continue
		}
		signals = append(signals, c.next.signal(c.before, c.again))
		if c.next.online != c.before.online || c.again {
			events = append(events, c.next.event())
		}
		if c.next.online != c.before.online {
			j.transitions.Add(ctx, 1, metric.WithAttributes(attribute.Bool("online", c.next.online)))
		}
	}
	if err := presence.Publish(ctx, j.conn, signals); err != nil {
		return err
	}
	if len(events) > 0 {
		if err := j.bus.Signal(ctx, "user", now, events...); err != nil {
			// Signals may be missing; people are not kept due for them, or an outage of
			// JetStream would have everybody told again and again.
			j.log.WarnContext(ctx, "who came and went is not in the stream", "people", len(events), "error", err)
		}
	}
	return j.roster.Settle(ctx, shard, verdicts)
}

// change is what is to be told about a person.
type change struct {
	before, next sighting
	again        bool
	deleted      bool // there is only next.user
}

// commit decides and stores, in one transaction that holds the people's rows: so
// versions rise in the order of what they tell.
func (j *judge) commit(ctx context.Context, claims []presence.Claim, now time.Time) ([]presence.Verdict, []change, error) {
	people := make([]uuid.UUID, 0, len(claims))
	for _, c := range claims {
		people = append(people, c.User)
	}
	slices.SortFunc(people, compareIDs)
	verdicts := make([]presence.Verdict, 0, len(claims))
	var changes []change
	err := pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		queries := db.New(tx)
		found, err := lockSightings(ctx, queries, people)
		if err != nil {
			return err
		}
		var store db.PresenceStoreParams
		for _, c := range claims {
			before, exists := found[c.User]
			if !exists {
				verdicts = append(verdicts, presence.Verdict{Claim: c})
				changes = append(changes, change{next: sighting{user: c.User}, deleted: true})
				continue
			}
			next, verdict := j.decide(before, c, now)
			verdicts = append(verdicts, verdict)
			if next.version != before.version {
				addSighting(&store, next)
			}
			if next.version != before.version || c.Again {
				changes = append(changes, change{before: before, next: next, again: c.Again})
			}
		}
		if len(store.UserIds) == 0 {
			return nil
		}
		return queries.PresenceStore(ctx, store)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("store presence: %w", err)
	}
	return verdicts, changes, nil
}

// decide is the rule: who has a device is online at once; who has none is offline
// after the grace, since when the last one left.
func (j *judge) decide(before sighting, c presence.Claim, now time.Time) (sighting, presence.Verdict) {
	v := presence.Verdict{Claim: c}
	switch {
	case len(c.Devices) > 0:
		return before.connected(countDevices(c.Devices), now), v
	case !before.online:
		return before, v
	}
	if v.LeftAt.IsZero() {
		v.LeftAt = now
	}
	if over := v.LeftAt.Add(j.grace); now.Before(over) {
		v.LookAgain = over
		return before, v
	}
	return before.gone(v.LeftAt, now), v
}

func addSighting(p *db.PresenceStoreParams, s sighting) {
	p.UserIds = append(p.UserIds, s.user)
	p.Onlines = append(p.Onlines, s.online)
	p.DeviceCounts = append(p.DeviceCounts, s.devices[:])
	p.LastSeenAts = append(p.LastSeenAts, s.lastSeen)
	p.ShownSeenAts = append(p.ShownSeenAts, s.shownSeen)
	p.Versions = append(p.Versions, s.version)
	p.ShownVersions = append(p.ShownVersions, s.shownVersion)
}

// event is the signal to other services: the truth, and whether it is shown.
func (s sighting) event() *eventv1.Event {
	if s.online {
		return event.New(typeUserOnline, s.user.String(), s.version, &userv1.UserOnline{
			UserId: s.user.String(), OnlineAt: timestamppb.New(s.lastSeen), Invisible: s.invisible,
		})
	}
	return event.New(typeUserOffline, s.user.String(), s.version, &userv1.UserOffline{
		UserId: s.user.String(), LastSeenAt: timestamppb.New(s.lastSeen), Invisible: s.invisible,
	})
}

// audit looks for people who are online by the tables and of whom the roll knows
// nothing: those who left while Redis had lost it, and those whom a Redis that was
// full has given up although they are connected. It is a job.
func (j *judge) audit(ctx context.Context) error {
	var errs []error
	queries := db.New(j.pool)
	after := uuid.Nil
	for {
		page, err := queries.PresenceOnlinePage(ctx, db.PresenceOnlinePageParams{After: after, PageSize: auditPeople})
		if err != nil {
			return fmt.Errorf("read who is online: %w", err)
		}
		if len(page) == 0 {
			return errors.Join(errs...)
		}
		after = page[len(page)-1]
		missing, err := j.roster.Missing(ctx, page)
		errs = append(errs, err, j.suspect(ctx, missing))
	}
}

// suspect asks the gateways for people who are missing on the roll, and has them
// looked at when those have had the time to answer.
func (j *judge) suspect(ctx context.Context, missing []uuid.UUID) error {
	if err := presence.PublishMissing(ctx, j.conn, missing); err != nil {
		return err
	}
	return j.roster.Doubt(ctx, j.clock.Now().Add(auditWait), missing...)
}

// forgetDeleted removes what was stored of people while they were being deleted. It
// is a job, and needs no Redis.
func (s *sightings) forgetDeleted(ctx context.Context) error {
	if err := db.New(s.pool).PresenceForgetDeleted(ctx, s.clock.Now().Add(-forgetFor)); err != nil {
		return fmt.Errorf("forget the deleted: %w", err)
	}
	return nil
}

func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }
