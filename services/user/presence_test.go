package user_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/services/user"
)

const (
	online    = realtimev1.PresenceState_PRESENCE_STATE_ONLINE
	offline   = realtimev1.PresenceState_PRESENCE_STATE_OFFLINE
	unknown   = realtimev1.PresenceState_PRESENCE_STATE_UNSPECIFIED
	soon      = 30 * time.Second
	often     = 5 * time.Millisecond
	theGrace  = 30 * time.Second
	longLease = time.Minute
)

// presenceWorld is the service, and gateways that only report.
type presenceWorld struct {
	*servicetest.Harness
	t testing.TB

	mu    sync.Mutex
	heard []*realtimev1.PresenceSignal
	gates []*gate
	again []presence.Pair
}

func startPresence(t *testing.T, opts servicetest.Options, visibility user.Visibility) *presenceWorld {
	t.Helper()
	def := user.Definition()
	if visibility != nil {
		def = user.DefinitionWith(visibility)
	}
	// The clock stands still, so what is asked in a loop would reach the limit.
	opts.Settings = append(opts.Settings, "PARLEY_USER_LOOK_LIMIT=1000000")
	w := &presenceWorld{Harness: servicetest.Start(t, opts, def), t: t}
	f := &presence.Follower{
		Conn: w.Bus.Conn(), Log: testkit.Logger(t), Loss: func() {},
		Signal: func(_ uuid.UUID, s *realtimev1.PresenceSignal) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.heard = append(w.heard, s)
		},
		Missing: func(user uuid.UUID) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, g := range w.gates {
				g.missing(user)
			}
		},
		Recheck: func(user, viewer uuid.UUID) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.again = append(w.again, presence.Pair{User: user, Viewer: viewer})
		},
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// signals are those about a person, in the order heard.
func (w *presenceWorld) signals(person uuid.UUID) []*realtimev1.PresenceSignal {
	w.mu.Lock()
	defer w.mu.Unlock()
	var about []*realtimev1.PresenceSignal
	for _, s := range w.heard {
		if uuid.UUID(s.GetUserId()) == person {
			about = append(about, s)
		}
	}
	return about
}

// transitions counts the signals in the stream about a person.
func (w *presenceWorld) transitions(person uuid.UUID, typ string) int {
	w.t.Helper()
	return w.allTransitions(typ)[person.String()]
}

func (w *presenceWorld) allTransitions(typ string) map[string]int {
	w.t.Helper()
	stream, err := w.Bus.EnsureStream(w.t.Context(), event.Signals("user"))
	require.NoError(w.t, err)
	info, err := stream.Info(w.t.Context())
	require.NoError(w.t, err)
	count := map[string]int{}
	for seq := info.State.FirstSeq; info.State.Msgs > 0 && seq <= info.State.LastSeq; seq++ {
		msg, err := stream.GetMsg(w.t.Context(), seq)
		require.NoError(w.t, err)
		events, err := event.Read(msg.Header, msg.Data)
		require.NoError(w.t, err)
		for _, ev := range events {
			if ev.GetType() == typ {
				count[ev.GetKey()]++
			}
		}
	}
	return count
}

func (w *presenceWorld) as(person uuid.UUID) userv1connect.PresenceServiceClient {
	return userv1connect.NewPresenceServiceClient(w.Dial("user", w.User(person)))
}

// seen is how the viewer sees somebody; nil if they may not.
func (w *presenceWorld) seen(viewer, person uuid.UUID) *realtimev1.Presence {
	w.t.Helper()
	res, err := w.as(viewer).BatchGetPresence(w.t.Context(), &userv1.BatchGetPresenceRequest{UserIds: []string{person.String(), person.String()}})
	require.NoError(w.t, err)
	if len(res.GetPresences()) == 0 {
		return nil
	}
	require.Len(w.t, res.GetPresences(), 1)
	return res.GetPresences()[0]
}

func (w *presenceWorld) until(viewer, person uuid.UUID, state realtimev1.PresenceState) *realtimev1.Presence {
	w.t.Helper()
	var last *realtimev1.Presence
	require.Eventually(w.t, func() bool {
		last = w.seen(viewer, person)
		return last.GetState() == state
	}, soon, often, "the state does not become %s", state)
	return last
}

// gate is a gateway as far as presence knows one.
type gate struct {
	w        *presenceWorld
	redis    rueidis.Client
	reporter *presence.Reporter
	stop     context.CancelFunc
	done     chan struct{}
	ended    sync.Once

	mu     sync.Mutex
	people map[uuid.UUID][]presence.Device
}

func (w *presenceWorld) gate(lease time.Duration) *gate {
	w.t.Helper()
	g := &gate{w: w, redis: w.Redis(), people: map[uuid.UUID][]presence.Device{}, done: make(chan struct{})}
	g.reporter = presence.NewReporter(presence.ReporterConfig{
		Redis: g.redis, NATS: w.Bus.Conn(), Log: testkit.Logger(w.t), Lease: lease,
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
	w.mu.Lock()
	w.gates = append(w.gates, g)
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	g.stop = cancel
	go func() {
		defer close(g.done)
		_ = g.reporter.Run(ctx)
	}()
	w.t.Cleanup(g.end)
	return g
}

func (g *gate) end() {
	g.ended.Do(func() {
		g.stop()
		<-g.done
	})
}

// kill has the gateway write nothing more: its lease runs out.
func (g *gate) kill() {
	g.redis.Close()
	g.end()
}

func (g *gate) set(person uuid.UUID, devices ...presence.Device) {
	g.mu.Lock()
	if len(devices) == 0 {
		delete(g.people, person)
	} else {
		g.people[person] = devices
	}
	g.mu.Unlock()
	g.reporter.Changed(person)
}

// missing reports somebody again who is connected here.
func (g *gate) missing(person uuid.UUID) {
	g.mu.Lock()
	_, here := g.people[person]
	g.mu.Unlock()
	if here {
		g.reporter.Changed(person)
	}
}

func phone() presence.Device {
	return presence.Device{Session: uuid.New(), Kind: realtimev1.DeviceKind_DEVICE_KIND_MOBILE}
}

func laptop() presence.Device {
	return presence.Device{Session: uuid.New(), Kind: realtimev1.DeviceKind_DEVICE_KIND_DESKTOP}
}

// settled returns when everything that was reported by g so far has been looked at:
// somebody else of the same shard, who comes after it, has.
func (g *gate) settled(person uuid.UUID) {
	g.w.t.Helper()
	other := uuid.New()
	other[15] = person[15]
	g.set(other, phone())
	g.w.until(uuid.New(), other, online)
}

func TestPresence(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna := uuid.New(), uuid.New()
	require.Equal(t, offline, w.until(viewer, anna, offline).GetState())
	require.Nil(t, w.seen(viewer, anna).GetLastSeenAt(), "she never was there")

	g, other := w.gate(longLease), w.gate(longLease)
	g.set(anna, phone())
	seen := w.until(viewer, anna, online)
	require.Len(t, seen.GetDevices(), 1)
	require.Nil(t, seen.GetLastSeenAt())
	require.Eventually(t, func() bool { return w.transitions(anna, "user.online") == 1 }, soon, often)

	t.Log("a second device, on another gateway")
	desk := laptop()
	other.set(anna, desk)
	require.Eventually(t, func() bool { return len(w.seen(viewer, anna).GetDevices()) == 2 }, soon, often)
	g.set(anna)
	require.Eventually(t, func() bool { return len(w.seen(viewer, anna).GetDevices()) == 1 }, soon, often)
	require.Greater(t, w.seen(viewer, anna).GetVersion(), seen.GetVersion())

	t.Log("the last device goes, and another comes within the grace")
	other.set(anna)
	other.settled(anna)
	w.Clock.Advance(theGrace - time.Second)
	g.set(anna, desk)
	g.settled(anna)
	w.Clock.Advance(time.Hour)
	g.settled(anna)
	require.Equal(t, online, w.seen(viewer, anna).GetState())
	require.Equal(t, 1, w.transitions(anna, "user.online"), "nobody saw it")
	require.Zero(t, w.transitions(anna, "user.offline"))

	t.Log("the last device goes for good")
	left := w.Clock.Now()
	g.set(anna)
	g.settled(anna)
	w.Clock.Advance(theGrace - time.Second)
	g.settled(anna)
	require.Equal(t, online, w.seen(viewer, anna).GetState(), "within the grace")
	w.Clock.Advance(time.Second)
	seen = w.until(viewer, anna, offline)
	require.Equal(t, left, seen.GetLastSeenAt().AsTime(), "last seen when the device went, not when it was told")
	require.Empty(t, seen.GetDevices())
	require.Eventually(t, func() bool { return w.transitions(anna, "user.offline") == 1 }, soon, often)
	require.Eventually(t, func() bool {
		signals := w.signals(anna)
		return signals[len(signals)-1].GetShown().GetState() == offline
	}, soon, often)
	signals := w.signals(anna)
	var last int64
	for _, s := range signals {
		require.Greater(t, s.GetShown().GetVersion(), last, "versions rise")
		last = s.GetShown().GetVersion()
	}
}

func TestPresenceOfAKilledGateway(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna, berta := uuid.New(), uuid.New(), uuid.New()
	berta[15] = anna[15]
	dying, living := w.gate(time.Second), w.gate(longLease)
	dying.set(anna, phone())
	dying.set(berta, phone())
	w.until(viewer, anna, online)
	w.until(viewer, berta, online)

	dying.kill()
	// Berta's client is elsewhere within the grace; the lease ends meanwhile.
	living.set(berta, phone())
	roster := presence.NewRoster(w.Redis())
	require.Eventually(t, func() bool {
		// Until anna is not on the roll, she only waits for the grace.
		swept, err := roster.Sweep(t.Context(), presence.ShardOf(anna))
		require.NoError(t, err)
		if swept == 0 {
			living.settled(anna)
		}
		w.Clock.Advance(theGrace)
		return w.seen(viewer, anna).GetState() == offline
	}, soon, 300*time.Millisecond)
	require.Equal(t, online, w.seen(viewer, berta).GetState())
	require.Zero(t, w.transitions(berta, "user.offline"), "nobody saw it")
	require.Equal(t, 1, w.transitions(berta, "user.online"))
}

func TestInvisible(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	viewer, anna := uuid.New(), uuid.New()
	g := w.gate(longLease)
	g.set(anna, phone())
	w.until(viewer, anna, online)

	became := w.Clock.Now()
	w.hide(anna, true)
	seen := w.seen(viewer, anna)
	require.Equal(t, offline, seen.GetState())
	require.Equal(t, became, seen.GetLastSeenAt().AsTime())
	require.Empty(t, seen.GetDevices())
	require.Equal(t, online, w.seen(anna, anna).GetState(), "her own devices see the truth")
	require.Eventually(t, func() bool {
		signals := w.signals(anna)
		last := signals[len(signals)-1]
		return last.GetShown().GetState() == offline && last.GetOwn().GetState() == online
	}, soon, often, "all are told at once")

	t.Log("what she does now is nobody's business")
	before := w.seen(viewer, anna)
	w.Clock.Advance(time.Hour)
	g.set(anna, phone(), laptop())
	require.Eventually(t, func() bool { return len(w.seen(anna, anna).GetDevices()) == 2 }, soon, often)
	g.set(anna)
	g.settled(anna)
	w.Clock.Advance(theGrace)
	w.until(anna, anna, offline)
	require.Equal(t, before.String(), w.seen(viewer, anna).String(), "not even the version moves")
	count := len(w.signals(anna))
	g.set(anna, phone())
	w.until(anna, anna, online)
	require.Eventually(t, func() bool { return len(w.signals(anna)) > count }, soon, often)
	for _, s := range w.signals(anna)[count:] {
		require.Nil(t, s.GetShown())
	}

	t.Log("visible again")
	w.hide(anna, false)
	require.Equal(t, online, w.seen(viewer, anna).GetState())
	res, err := w.as(anna).GetPresenceSettings(t.Context(), &userv1.GetPresenceSettingsRequest{})
	require.NoError(t, err)
	require.False(t, res.GetSettings().GetInvisible())

	t.Log("who becomes visible while offline shows nothing of the time between")
	w.hide(anna, true)
	hidden := w.Clock.Now()
	w.Clock.Advance(time.Hour)
	g.set(anna)
	g.settled(anna)
	w.Clock.Advance(theGrace)
	w.until(anna, anna, offline)
	w.hide(anna, false)
	require.Equal(t, hidden, w.seen(viewer, anna).GetLastSeenAt().AsTime())
}

func (w *presenceWorld) hide(person uuid.UUID, invisible bool) {
	w.t.Helper()
	res, err := w.as(person).UpdatePresenceSettings(w.t.Context(), &userv1.UpdatePresenceSettingsRequest{
		Settings: &userv1.PresenceSettings{Invisible: invisible},
	})
	require.NoError(w.t, err)
	require.Equal(w.t, invisible, res.GetSettings().GetInvisible())
}

func TestPresenceSettingsAreRequired(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	_, err := w.as(uuid.New()).UpdatePresenceSettings(t.Context(), &userv1.UpdatePresenceSettingsRequest{})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	anonymous := userv1connect.NewPresenceServiceClient(w.Dial("user", w.Anonymous()))
	_, err = anonymous.GetPresenceSettings(t.Context(), &userv1.GetPresenceSettingsRequest{})
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
	_, err = w.as(uuid.New()).BatchGetPresence(t.Context(), &userv1.BatchGetPresenceRequest{})
	requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
}

func TestPresenceWithTwoReplicas(t *testing.T) {
	t.Parallel()
	w := startPresence(t, servicetest.Options{}, nil)
	w.Add(user.Definition())
	g := w.gate(longLease)
	viewer := uuid.New()
	people := make([]uuid.UUID, 100)
	for i := range people {
		people[i] = uuid.New()
		g.set(people[i], phone())
	}
	for _, p := range people {
		w.until(viewer, p, online)
	}
	var told map[string]int
	require.Eventually(t, func() bool {
		told = w.allTransitions("user.online")
		return len(told) == len(people)
	}, soon, 50*time.Millisecond)
	for _, p := range people {
		require.Equal(t, 1, told[p.String()], "the replicas share the work")
	}
}

// rules says who may see whom.
type rules struct {
	mu     sync.Mutex
	hidden map[uuid.UUID]bool
	err    error
}

func (r *rules) VisibleBatch(_ context.Context, _ uuid.UUID, people []uuid.UUID) ([]bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	visible := make([]bool, len(people))
	for i, p := range people {
		visible[i] = !r.hidden[p]
	}
	return visible, r.err
}

func TestWhoMayBeSeen(t *testing.T) {
	t.Parallel()
	viewer, anna := uuid.New(), uuid.New()
	r := &rules{hidden: map[uuid.UUID]bool{anna: true}}
	w := startPresence(t, servicetest.Options{}, r)
	require.Nil(t, w.seen(viewer, anna))
	require.NotNil(t, w.seen(anna, anna), "one always sees oneself")
	r.mu.Lock()
	r.err = errors.New("privacy is away")
	r.mu.Unlock()
	_, err := w.as(viewer).BatchGetPresence(t.Context(), &userv1.BatchGetPresenceRequest{UserIds: []string{uuid.NewString()}})
	requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
}
