package user_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user"
)

// inShard makes somebody of the shard of another.
func inShard(of uuid.UUID) uuid.UUID {
	id := uuid.New()
	id[15] = of[15]
	return id
}

// Redis loses everything: gateways write it again, and nobody flickers.
func TestPresenceOutlivesAnEmptiedRedis(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna, gone := uuid.New(), uuid.New(), uuid.New()
	g := w.gate(900 * time.Millisecond)
	g.set(anna, phone())
	g.set(gone, phone())
	w.until(viewer, anna, online)
	w.until(viewer, gone, online)

	redis := w.Redis()
	require.NoError(t, redis.Do(t.Context(), redis.B().Flushdb().Build()).Error())
	g.set(gone) // while nobody knows anything
	roster := presence.NewRoster(redis)
	require.Eventually(t, func() bool {
		missing, err := roster.Missing(t.Context(), []uuid.UUID{anna})
		require.NoError(t, err)
		return len(missing) == 0
	}, soon, often)
	g.settled(gone)
	w.Clock.Advance(theGrace)
	w.until(viewer, gone, offline)
	require.Equal(t, online, w.seen(viewer, anna).GetState())
	require.Equal(t, 1, w.transitions(anna, "user.online"))
	require.Zero(t, w.transitions(anna, "user.offline"))
}

// Redis is away, and comes back empty: until then nothing is known.
func TestPresenceWithoutRedis(t *testing.T) {
	t.Parallel()
	server := testkit.PrivateRedis(t)
	w := startPresence(t, servicetest.Options{RedisURL: server.URL}, nil)
	viewer, anna := uuid.New(), uuid.New()
	g := w.gate(900 * time.Millisecond)
	g.set(anna, phone())
	version := w.until(viewer, anna, online).GetVersion()
	server.Kill9()
	w.until(viewer, anna, unknown)
	w.hide(viewer, true) // works without
	require.Eventually(t, func() bool { return len(w.signals(viewer)) == 1 }, soon, often)
	server.Restart()
	require.Equal(t, version, w.until(viewer, anna, online).GetVersion(), "nothing has changed")
}

// A Redis that is full gives up what nobody has touched for long: people of whom
// there is nothing new. The gateways know better.
func TestPresenceOutlivesAnEviction(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna, gone := uuid.New(), uuid.New(), uuid.New()
	g := w.gate(longLease)
	g.set(anna, phone())
	g.set(gone, phone())
	w.until(viewer, anna, online)
	w.until(viewer, gone, online)
	redis := w.Redis()
	evict := func(person uuid.UUID) {
		key := fmt.Sprintf("presence:{%02d}:user:%s", presence.ShardOf(person), person)
		require.NoError(t, redis.Do(t.Context(), redis.B().Del().Key(key).Build()).Error())
	}
	evict(anna)
	g.mu.Lock()
	delete(g.people, gone) // and nobody has written that down
	g.mu.Unlock()
	evict(gone)

	w.Clock.Advance(5*time.Minute + time.Second) // the audit
	roster := presence.NewRoster(redis)
	require.Eventually(t, func() bool {
		missing, err := roster.Missing(t.Context(), []uuid.UUID{anna})
		require.NoError(t, err)
		return len(missing) == 0
	}, soon, often, "her gateway writes her again")
	require.Eventually(t, func() bool {
		w.Clock.Advance(theGrace)
		return w.seen(viewer, gone).GetState() == offline
	}, soon, 50*time.Millisecond)
	g.settled(anna)
	require.Equal(t, online, w.seen(viewer, anna).GetState())
	require.Zero(t, w.transitions(anna, "user.offline"), "nobody saw it")
}

// Many people are due in one shard, and the tables are slow: it takes longer than
// what was told counts for, and yet nobody becomes unknown.
func TestMuchToJudgeMakesNobodyUnknown(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, calm := uuid.New(), uuid.New()
	g := w.gate(longLease)
	g.set(calm, phone())
	w.until(viewer, calm, online)
	_, err := w.DB("user").Exec(t.Context(), `
		CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END';
		CREATE TRIGGER slow AFTER UPDATE ON presence FOR EACH STATEMENT EXECUTE FUNCTION slowly();`)
	require.NoError(t, err)
	people := make([]uuid.UUID, 4200) // more than one look takes
	g.mu.Lock()
	for i := range people {
		people[i] = inShard(calm)
		g.people[people[i]] = []presence.Device{phone()}
	}
	g.mu.Unlock()
	began := time.Now()
	for _, p := range people {
		g.reporter.Changed(p)
	}
	require.Eventually(t, func() bool {
		require.Equal(t, online, w.seen(viewer, calm).GetState(), "known all the time")
		var count int
		require.NoError(t, w.DB("user").QueryRow(t.Context(), "SELECT count(*) FROM presence WHERE online").Scan(&count))
		return count == len(people)+1
	}, 2*soon, 20*time.Millisecond)
	require.Greater(t, time.Since(began), 5*time.Second, "the test is one")
}

// One shard that stands still holds up none of the others.
func TestAShardThatStandsStillConcernsNobodyElse(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna, berta := uuid.New(), uuid.New(), uuid.New()
	anna[15], berta[15] = 0, 1
	g := w.gate(longLease)
	g.set(anna, phone())
	g.set(berta, phone())
	w.until(viewer, anna, online)
	w.until(viewer, berta, online)
	tx, err := w.DB("user").Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(t.Context())) }()
	_, err = tx.Exec(t.Context(), "SELECT FROM presence WHERE user_id = $1 FOR UPDATE", anna)
	require.NoError(t, err)
	g.set(anna, phone(), laptop())
	require.Eventually(t, func() bool {
		w.Clock.Advance(time.Second) // so that the claim that failed comes back
		return w.seen(viewer, anna).GetState() == unknown
	}, soon, 20*time.Millisecond)
	require.Equal(t, online, w.seen(viewer, berta).GetState())
	g.set(berta, phone(), laptop())
	require.Eventually(t, func() bool { return len(w.seen(viewer, berta).GetDevices()) == 2 }, soon, often, "and goes on")
}

// Whoever watches somebody who is deleted sees that they are not there any more,
// whatever was told before.
func TestNobodyIsOnlineAfterTheirDeletion(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna := uuid.New(), newID(t)
	w.Deliver("auth", "user", event.New("account.registered", anna.String(), 1, &authv1.AccountRegistered{
		AccountId: anna.String(), Username: "anna", DisplayName: "Anna",
	}))
	g := w.gate(longLease)
	g.set(anna, phone())
	w.until(viewer, anna, online)
	deleted := event.New("user.deleted", anna.String(), 2, &userv1.UserDeleted{UserId: anna.String()})
	w.Deliver("user", "user/user.deleted", deleted)

	last := func() int64 {
		signals := w.signals(anna)
		if signals[len(signals)-1].GetShown().GetState() != offline {
			return 0
		}
		return signals[len(signals)-1].GetShown().GetVersion()
	}
	require.Eventually(t, func() bool { return last() == math.MaxInt64 }, soon, often, "told at once")
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.again) == 1 && w.again[0] == presence.Pair{User: anna}
	}, soon, often, "and watches are asked for again")
	seen := w.seen(viewer, anna)
	require.Equal(t, offline, seen.GetState())
	require.EqualValues(t, math.MaxInt64, seen.GetVersion(), "no version that was shown counts more")
	told := len(w.signals(anna))
	g.set(anna) // the sockets end
	require.Eventually(t, func() bool { return len(w.signals(anna)) > told && last() == math.MaxInt64 }, soon, often, "told again")
	require.Zero(t, w.transitions(anna, "user.offline"))
}

// Who becomes invisible may be seen by others than before: that is asked again.
func TestSettingsHaveWatchesRechecked(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	anna := uuid.New()
	w.hide(anna, true)
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.again) == 1 && w.again[0] == presence.Pair{User: anna}
	}, soon, often)
	w.hide(anna, true)
	changes := about(w.Harness, "user.presence_settings_changed", anna)
	require.Len(t, changes, 1, "only what is new is an event")
	payload := &userv1.UserPresenceSettingsChanged{}
	require.NoError(t, changes[0].GetPayload().UnmarshalTo(payload))
	require.True(t, payload.GetInvisible())
}

// A replica that dies after the commit has not told: another does.
func TestATransitionThatWasNotToldIsToldByAnother(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna := uuid.New(), uuid.New()
	g := w.gate(longLease)
	g.set(anna, phone())
	w.until(viewer, anna, online)
	require.NoError(t, w.Instances("user")[0].Stop())
	// What a process leaves that died between the two: the table is new, the claim is
	// not settled, and nobody has heard anything.
	told := len(w.signals(anna))
	g.set(anna, phone(), laptop())
	roster := presence.NewRoster(w.Redis())
	require.Eventually(t, func() bool {
		claims, err := roster.Claim(t.Context(), presence.ShardOf(anna), w.Clock.Now(), 10*time.Second, 10)
		require.NoError(t, err)
		return len(claims) == 1 && len(claims[0].Devices) == 2
	}, soon, often)
	_, err := w.DB("user").Exec(t.Context(), `UPDATE presence SET devices = '\x00010100', version = version + 1, shown_version = shown_version + 1
		WHERE user_id = $1`, anna)
	require.NoError(t, err)
	w.Add(user.Definition())
	w.Clock.Advance(11 * time.Second)
	require.Eventually(t, func() bool { return len(w.signals(anna)) > told }, soon, often)
	signals := w.signals(anna)
	require.Len(t, signals[len(signals)-1].GetShown().GetDevices(), 2)
}
