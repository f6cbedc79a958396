package presence_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/testkit"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// key is one of a person's shard.
func key(user uuid.UUID, rest string) string {
	return fmt.Sprintf("presence:{%02d}:%s", presence.ShardOf(user), rest)
}

// loseReports has Redis know one report less than it was sent, as after a failover,
// and the person connected as before it.
func loseReports(t *testing.T, redis rueidis.Client, user uuid.UUID, devices string) {
	t.Helper()
	leases, err := redis.Do(t.Context(), redis.B().Smembers().Key(key(user, "leases")).Build()).AsStrSlice()
	require.NoError(t, err)
	require.Len(t, leases, 1)
	lease := key(user, "lease:"+leases[0])
	number, err := redis.Do(t.Context(), redis.B().Get().Key(lease).Build()).AsInt64()
	require.NoError(t, err)
	for _, command := range []rueidis.Completed{
		redis.B().Hset().Key(key(user, "user:"+user.String())).FieldValue().FieldValue(leases[0], devices).Build(),
		redis.B().Sadd().Key(key(user, "of:"+leases[0])).Member(user.String()).Build(),
		redis.B().Set().Key(lease).Value(strconv.FormatInt(number-1, 10)).Keepttl().Build(),
	} {
		require.NoError(t, redis.Do(t.Context(), command).Error())
	}
}

// A failover loses the report that somebody has left. The gateway finds out, by the
// next heartbeat or the next report, and writes everybody down again.
func TestReportsThatAFailoverLost(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		g := newGateway(t, redis, nil, 900*time.Millisecond)
		anna, berta := uuid.New(), uuid.New()
		berta[15] = anna[15]
		phone := device(realtimev1.DeviceKind_DEVICE_KIND_MOBILE)
		g.set(anna, phone)
		settle(t, roster, claim(t, roster, anna, noon), time.Time{})
		g.set(berta, phone)
		settle(t, roster, claim(t, roster, berta, noon), time.Time{})
		written, err := redis.Do(t.Context(), redis.B().Hvals().Key(key(anna, "user:"+anna.String())).Build()).AsStrSlice()
		require.NoError(t, err)
		g.set(anna)
		settle(t, roster, claim(t, roster, anna, noon), time.Time{})

		loseReports(t, redis, anna, written[0])
		require.Equal(t, []presence.Device{phone}, claim(t, roster, berta, noon).Devices, "written again")
		require.Eventually(t, func() bool {
			_, err := roster.Sweep(t.Context(), presence.ShardOf(anna))
			require.NoError(t, err)
			claims, err := roster.Claim(t.Context(), presence.ShardOf(anna), noon, time.Minute, 10)
			require.NoError(t, err)
			for _, c := range claims {
				if c.User == anna {
					return len(c.Devices) == 0
				}
			}
			return false
		}, patience, 5*time.Millisecond, "she is connected by what nobody writes any more")
	})
}

// Who leaves, comes back and leaves again has the whole grace again, also if nobody
// came to settle in between.
func TestASecondLeaveIsNotTheFirst(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		g := newGateway(t, redis, nil, time.Minute)
		anna := uuid.New()
		phone := device(realtimev1.DeviceKind_DEVICE_KIND_MOBILE)
		g.set(anna, phone)
		settle(t, roster, claim(t, roster, anna, noon), time.Time{})
		g.set(anna)
		c := claim(t, roster, anna, noon)
		c.LeftAt = noon
		settle(t, roster, c, noon.Add(30*time.Second))
		g.set(anna, phone)
		back := claim(t, roster, anna, noon.Add(29*time.Second))
		require.Equal(t, []presence.Device{phone}, back.Devices)
		g.set(anna) // before that is settled
		var again presence.Claim
		require.Eventually(t, func() bool {
			again = claim(t, roster, anna, noon.Add(29*time.Second))
			return len(again.Devices) == 0
		}, patience, 2*time.Millisecond)
		settle(t, roster, back, time.Time{})
		require.Zero(t, again.LeftAt, "she was there a moment ago")
	})
}

// What stands in the roll ends by itself, should everybody who looks after it be gone: also what is noted of somebody
// who has just left.
func TestTheRollEnds(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		g := newGateway(t, redis, nil, time.Minute)
		anna := uuid.New()
		ends := func(when string) {
			t.Helper()
			left, err := redis.Do(t.Context(), redis.B().Pttl().Key(key(anna, "user:"+anna.String())).Build()).AsInt64()
			require.NoError(t, err)
			require.Positive(t, left, when)
		}
		g.set(anna, device(realtimev1.DeviceKind_DEVICE_KIND_MOBILE))
		c := claim(t, roster, anna, noon)
		ends("claimed")
		settle(t, roster, c, time.Time{})
		ends("settled")
		g.set(anna)
		c = claim(t, roster, anna, noon)
		ends("claimed, of whom nothing is known")
		c.LeftAt = noon
		settle(t, roster, c, noon.Add(30*time.Second))
		ends("looked at again later")
		claim(t, roster, anna, noon.Add(31*time.Second))
		ends("looked at again")
	})
}

// Of a cluster one node dies: what stands on the others is kept up and looked at.
func TestADeadNodeConcernsItsOwnShards(t *testing.T) {
	t.Parallel()
	redis := open(t, testkit.RedisCluster(t))
	for _, node := range redis.Nodes() {
		require.NoError(t, node.Do(t.Context(), node.B().Arbitrary("CONFIG", "SET", "cluster-require-full-coverage", "no").Build()).Error())
	}
	const lease = 2 * time.Second
	g := newGateway(t, redis, nil, lease)
	roster := presence.NewRoster(redis)
	people := make([]uuid.UUID, presence.Shards)
	for shard := range people {
		people[shard] = uuid.New()
		people[shard][15] = byte(shard)
		g.set(people[shard], device(realtimev1.DeviceKind_DEVICE_KIND_WEB))
	}
	for _, user := range people {
		settle(t, roster, claim(t, roster, user, noon), time.Time{})
	}
	for _, node := range redis.Nodes() {
		_ = node.Do(t.Context(), node.B().Arbitrary("SHUTDOWN", "NOSAVE").Build()).Error() // it does not live to answer
		break
	}
	reachable := func(user uuid.UUID) bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // reading is tried again until then
		defer cancel()
		return redis.Do(ctx, redis.B().Exists().Key(key(user, "leases")).Build()).Error() == nil
	}
	var living []uuid.UUID
	for _, user := range people {
		if reachable(user) {
			living = append(living, user)
		}
	}
	require.NotEmpty(t, living)
	require.Less(t, len(living), presence.Shards)
	// Three leases long nobody's ends. The clock is Redis's.
	until := time.Now().Add(3 * lease)
	require.Eventually(t, func() bool {
		for _, user := range living {
			swept, err := roster.Sweep(t.Context(), presence.ShardOf(user))
			require.NoError(t, err)
			require.Zero(t, swept, "a lease has ended though its gateway lives")
		}
		return time.Now().After(until)
	}, patience, 50*time.Millisecond)
	anna := living[0]
	g.set(anna)
	require.Empty(t, claim(t, roster, anna, noon).Devices, "changes are reported")
	require.Error(t, roster.Doubt(t.Context(), noon, people...), "not all of them")
	for _, user := range living[1:] {
		require.True(t, claim(t, roster, user, noon).Again, "whose node is there is looked at")
	}
}
