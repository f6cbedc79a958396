package presence_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/testkit"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testkit.OfClusterClients()...) }

const patience = 20 * time.Second

// noon is the clock of whoever looks at the roll; the roll has none.
var noon = time.Date(2026, time.March, 16, 12, 0, 0, 0, time.UTC)

// everyRedis runs a test on each kind of server that a deployment may have.
func everyRedis(t *testing.T, test func(*testing.T, rueidis.Client)) {
	t.Helper()
	servers := map[string]func(testing.TB) string{
		"Embedded": func(t testing.TB) string { return testkit.Redis(t) + "?protocol=2&client_cache=0" },
		"Server":   func(t testing.TB) string { return testkit.PrivateRedis(t).URL },
		"Cluster":  testkit.RedisCluster,
	}
	for name, url := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t, url(t)))
		})
	}
}

func open(t *testing.T, url string) rueidis.Client {
	t.Helper()
	option, err := rueidis.ParseURL(url)
	require.NoError(t, err)
	option.DisableCache = option.DisableCache || option.AlwaysRESP2
	client, err := rueidis.NewClient(option)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// gateway is the people who are connected to one.
type gateway struct {
	t        *testing.T
	reporter *presence.Reporter
	stop     context.CancelFunc
	stopped  chan struct{}

	mu     sync.Mutex
	people map[uuid.UUID][]presence.Device
}

func newGateway(t *testing.T, redis rueidis.Client, conn *nats.Conn, lease time.Duration) *gateway {
	t.Helper()
	g := &gateway{t: t, people: map[uuid.UUID][]presence.Device{}, stopped: make(chan struct{})}
	g.reporter = presence.NewReporter(presence.ReporterConfig{
		Redis: redis, NATS: conn, Log: testkit.Logger(t), Lease: lease,
		Devices: func(user uuid.UUID) []presence.Device {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.people[user]
		},
		Each: func(shard int, visit func(uuid.UUID)) {
			g.mu.Lock()
			defer g.mu.Unlock()
			for user := range g.people {
				if presence.ShardOf(user) == shard {
					visit(user)
				}
			}
		},
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	g.stop = cancel
	go func() {
		defer close(g.stopped)
		_ = g.reporter.Run(ctx)
	}()
	t.Cleanup(g.end)
	return g
}

func (g *gateway) end() {
	g.stop()
	<-g.stopped
}

func (g *gateway) set(user uuid.UUID, devices ...presence.Device) {
	g.mu.Lock()
	if len(devices) == 0 {
		delete(g.people, user)
	} else {
		g.people[user] = devices
	}
	g.mu.Unlock()
	g.reporter.Changed(user)
}

func device(kind realtimev1.DeviceKind) presence.Device {
	return presence.Device{Session: uuid.New(), Kind: kind}
}

// apart gives two people of different shards: whoever claims one does not get the other with it.
func apart() (a, b uuid.UUID) {
	for a = uuid.New(); ; {
		if b = uuid.New(); presence.ShardOf(a) != presence.ShardOf(b) {
			return a, b
		}
	}
}

// claim waits until somebody is due and takes them for a minute.
func claim(t *testing.T, roster *presence.Roster, user uuid.UUID, now time.Time) presence.Claim {
	t.Helper()
	var found presence.Claim
	require.Eventually(t, func() bool {
		claims, err := roster.Claim(t.Context(), presence.ShardOf(user), now, time.Minute, 10)
		require.NoError(t, err)
		for _, c := range claims {
			if c.User == user {
				found = c
				return true
			}
		}
		return false
	}, patience, 2*time.Millisecond, "nobody is due")
	return found
}

func nobodyDue(t *testing.T, roster *presence.Roster, user uuid.UUID, now time.Time) {
	t.Helper()
	claims, err := roster.Claim(t.Context(), presence.ShardOf(user), now, time.Minute, 10)
	require.NoError(t, err)
	require.Empty(t, claims)
}

func settle(t *testing.T, roster *presence.Roster, c presence.Claim, again time.Time) {
	t.Helper()
	require.NoError(t, roster.Settle(t.Context(), presence.ShardOf(c.User), []presence.Verdict{{Claim: c, LookAgain: again}}))
}

func TestReportsAreClaimedAndSettled(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		one, two := newGateway(t, redis, nil, time.Minute), newGateway(t, redis, nil, time.Minute)
		anna := uuid.New()
		phone, laptop := device(realtimev1.DeviceKind_DEVICE_KIND_MOBILE), device(realtimev1.DeviceKind_DEVICE_KIND_DESKTOP)

		one.set(anna, phone)
		c := claim(t, roster, anna, noon)
		require.Equal(t, []presence.Device{phone}, c.Devices)
		require.False(t, c.Again)
		nobodyDue(t, roster, anna, noon.Add(59*time.Second))
		settle(t, roster, c, time.Time{})
		nobodyDue(t, roster, anna, noon.Add(time.Hour))

		two.set(anna, laptop, phone)
		c = claim(t, roster, anna, noon)
		require.ElementsMatch(t, []presence.Device{phone, laptop}, c.Devices, "a session on two gateways is one device")

		// Changes while it is being looked at are looked at again.
		two.set(anna)
		second := claim(t, roster, anna, noon)
		require.Equal(t, []presence.Device{phone}, second.Devices)
		require.True(t, second.Again, "nobody has settled")
		settle(t, roster, c, time.Time{}) // too late, and it does no harm
		settle(t, roster, second, time.Time{})
		nobodyDue(t, roster, anna, noon.Add(time.Hour))
	})
}

func TestWhoIsGoneIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		g := newGateway(t, redis, nil, time.Minute)
		anna := uuid.New()
		g.set(anna, device(realtimev1.DeviceKind_DEVICE_KIND_WEB))
		settle(t, roster, claim(t, roster, anna, noon), time.Time{})
		g.set(anna)
		c := claim(t, roster, anna, noon)
		require.Empty(t, c.Devices)
		require.Zero(t, c.LeftAt)
		c.LeftAt = noon
		settle(t, roster, c, noon.Add(30*time.Second))
		nobodyDue(t, roster, anna, noon.Add(29*time.Second))
		c = claim(t, roster, anna, noon.Add(30*time.Second))
		require.Equal(t, noon, c.LeftAt)
		require.False(t, c.Again)
		settle(t, roster, c, time.Time{})
		missing, err := roster.Missing(t.Context(), []uuid.UUID{anna})
		require.NoError(t, err)
		require.Equal(t, []uuid.UUID{anna}, missing, "nothing is left of who is gone")
	})
}

func TestClaimsOfTheDeadComeBack(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		g := newGateway(t, redis, nil, time.Minute)
		anna := uuid.New()
		g.set(anna, device(realtimev1.DeviceKind_DEVICE_KIND_WEB))
		dead := claim(t, roster, anna, noon)
		c := claim(t, roster, anna, noon.Add(time.Minute))
		require.True(t, c.Again)
		settle(t, roster, dead, time.Time{})
		require.True(t, claim(t, roster, anna, noon.Add(2*time.Minute)).Again, "it was not the dead one's any more")
	})
}

func TestDeadGatewaysAreSwept(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		dying, living := newGateway(t, redis, nil, time.Minute), newGateway(t, redis, nil, time.Minute)
		anna, berta := uuid.New(), uuid.New()
		berta[15] = anna[15]
		phone, laptop := device(realtimev1.DeviceKind_DEVICE_KIND_MOBILE), device(realtimev1.DeviceKind_DEVICE_KIND_DESKTOP)
		dying.set(anna, phone)
		settle(t, roster, claim(t, roster, anna, noon), time.Time{})
		dying.set(berta, phone)
		settle(t, roster, claim(t, roster, berta, noon), time.Time{})
		living.set(berta, laptop)
		settle(t, roster, claim(t, roster, berta, noon), time.Time{})

		swept, err := roster.Sweep(t.Context(), presence.ShardOf(anna))
		require.NoError(t, err)
		require.Zero(t, swept, "both live")
		dying.end() // with people on it: only its lease ends
		swept, err = roster.Sweep(t.Context(), presence.ShardOf(anna))
		require.NoError(t, err)
		require.Equal(t, 2, swept)
		claims, err := roster.Claim(t.Context(), presence.ShardOf(anna), noon, time.Minute, 10)
		require.NoError(t, err)
		require.Len(t, claims, 2)
		for _, c := range claims {
			if c.User == berta {
				require.Equal(t, []presence.Device{laptop}, c.Devices)
			} else {
				require.Empty(t, c.Devices)
			}
		}
		swept, err = roster.Sweep(t.Context(), presence.ShardOf(anna))
		require.NoError(t, err)
		require.Zero(t, swept)
	})
}

// A gateway that was silent for too long, and one whose Redis was emptied, write
// everybody down again.
func TestLostLeasesAreTakenAnew(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		g := newGateway(t, redis, nil, 300*time.Millisecond)
		anna, berta := apart()
		phone := device(realtimev1.DeviceKind_DEVICE_KIND_MOBILE)
		g.set(anna, phone)
		g.set(berta, phone)
		settle(t, roster, claim(t, roster, anna, noon), time.Time{})
		settle(t, roster, claim(t, roster, berta, noon), time.Time{})
		for _, node := range redis.Nodes() {
			require.NoError(t, node.Do(t.Context(), node.B().Flushdb().Build()).Error())
		}
		for _, user := range []uuid.UUID{anna, berta} {
			require.Equal(t, []presence.Device{phone}, claim(t, roster, user, noon).Devices)
		}
	})
}

func TestDoubtHasPeopleLookedAt(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, redis rueidis.Client) {
		roster := presence.NewRoster(redis)
		anna, berta := uuid.New(), uuid.New()
		require.NoError(t, roster.Doubt(t.Context(), noon.Add(5*time.Second), anna, berta))
		nobodyDue(t, roster, anna, noon)
		c := claim(t, roster, anna, noon.Add(5*time.Second))
		require.True(t, c.Again)
		require.Empty(t, c.Devices)
	})
}

func TestSignalsReachEveryGateway(t *testing.T) {
	t.Parallel()
	server := testkit.NATS(t)
	heard := make(chan string, 2000)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range 2 {
		f := &presence.Follower{
			Conn: server.Connect(t), Log: testkit.Logger(t), Loss: func() {},
			Signal: func(_ uuid.UUID, s *realtimev1.PresenceSignal) { heard <- s.GetShown().GetUserId() },
		}
		group.Go(func() { _ = f.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); group.Wait() })
	conn := server.Connect(t)
	// Both listen from when the first signal of a probe has come twice.
	probe := signal(uuid.New())
	probes := 0
	require.Eventually(t, func() bool {
		require.NoError(t, presence.Publish(t.Context(), conn, []*realtimev1.PresenceSignal{probe}))
		for {
			select {
			case <-heard:
				probes++
			default:
				return probes >= 4
			}
		}
	}, patience, 10*time.Millisecond)
	var signals []*realtimev1.PresenceSignal
	for range 600 {
		signals = append(signals, signal(uuid.New()))
	}
	require.NoError(t, presence.Publish(t.Context(), conn, signals))
	count := map[string]int{}
	require.Eventually(t, func() bool {
		for {
			select {
			case id := <-heard:
				if id != probe.GetShown().GetUserId() {
					count[id]++
				}
			default:
				if len(count) < len(signals) {
					return false
				}
				for _, n := range count {
					if n != 2 {
						return false
					}
				}
				return true
			}
		}
	}, patience, 5*time.Millisecond)
	require.Error(t, presence.Publish(t.Context(), conn, []*realtimev1.PresenceSignal{{UserId: []byte{1}}}))
}

func signal(user uuid.UUID) *realtimev1.PresenceSignal {
	return &realtimev1.PresenceSignal{UserId: user[:], Shown: &realtimev1.Presence{
		UserId: user.String(), State: realtimev1.PresenceState_PRESENCE_STATE_ONLINE,
	}}
}
