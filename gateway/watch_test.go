package gateway

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// sightings is the user service: it answers what the test has set. Who is not in it
// may not be seen.
type sightings struct {
	userv1connect.UnimplementedPresenceServiceHandler
	mu       sync.Mutex
	people   map[uuid.UUID]*realtimev1.Presence
	fails    bool
	answered func() // after the answer was made, before it is sent
	asked    int
}

func (s *sightings) BatchGetPresence(_ context.Context, r *userv1.BatchGetPresenceRequest) (*userv1.BatchGetPresenceResponse, error) {
	s.mu.Lock()
	res := &userv1.BatchGetPresenceResponse{}
	for _, id := range r.GetUserIds() {
		if p, ok := s.people[uuid.MustParse(id)]; ok {
			res.Presences = append(res.Presences, p)
		}
	}
	s.asked++
	fails, answered := s.fails, s.answered
	s.mu.Unlock()
	if answered != nil {
		answered()
	}
	if fails {
		return nil, rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "not known")
	}
	return res, nil
}

func (s *sightings) set(p *realtimev1.Presence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.people[uuid.MustParse(p.GetUserId())] = p
}

func newWatchWorld(t testing.TB, change ...func(*setup)) (*world, *sightings) {
	t.Helper()
	s := &sightings{people: map[uuid.UUID]*realtimev1.Presence{}}
	_, handler := userv1connect.NewPresenceServiceHandler(s)
	w := newWorld(t, append([]func(*setup){func(s *setup) { s.extra["user"] = handler }}, change...)...)
	return w, s
}

func online(user uuid.UUID, version int64) *realtimev1.Presence {
	return &realtimev1.Presence{
		UserId: user.String(), State: realtimev1.PresenceState_PRESENCE_STATE_ONLINE, Version: version,
		Devices: []*realtimev1.DeviceCount{{Kind: realtimev1.DeviceKind_DEVICE_KIND_WEB, Count: 1}},
	}
}

func offline(user uuid.UUID, version int64) *realtimev1.Presence {
	return &realtimev1.Presence{
		UserId: user.String(), State: realtimev1.PresenceState_PRESENCE_STATE_OFFLINE, Version: version,
		LastSeenAt: timestamppb.New(time.Unix(1_700_000_000, 0)),
	}
}

// signal tells all gateways, as the user service does.
func (w *world) signal(user uuid.UUID, shown, own *realtimev1.Presence) {
	w.t.Helper()
	require.NoError(w.t, presence.Publish(w.t.Context(), w.conn, []*realtimev1.PresenceSignal{{UserId: user[:], Shown: shown, Own: own}}))
}

func (c *client) watch(id uint32, w *realtimev1.Watch) {
	c.t.Helper()
	c.send(&realtimev1.ClientFrame{Id: id, Frame: &realtimev1.ClientFrame_Watch{Watch: w}})
}

// watched reads the answer to a watch.
func (c *client) watched(id uint32) *realtimev1.Watched {
	c.t.Helper()
	frame := c.receive()
	require.Equal(c.t, id, frame.GetId(), frame)
	require.Nil(c.t, frame.GetReply().GetError())
	watched := &realtimev1.Watched{}
	if c.json {
		require.NoError(c.t, protojson.Unmarshal(frame.GetReply().GetResponse(), watched))
	} else {
		require.NoError(c.t, proto.Unmarshal(frame.GetReply().GetResponse(), watched))
	}
	return watched
}

// nothing shows that no push is on its way: a signal that was sent after all others
// has been taken, and the socket has answered after that.
func (w *world) nothing(c *client, id uint32) {
	c.t.Helper()
	w.settled()
	c.ping(id)
	require.NotNil(c.t, c.receive().GetPong())
}

func TestWatch(t *testing.T) {
	t.Parallel()
	for _, subprotocol := range []string{SubprotocolProto, SubprotocolJSON} {
		t.Run(subprotocol, func(t *testing.T) {
			t.Parallel()
			w, s := newWatchWorld(t)
			c := w.connect(newPerson(), subprotocol)
			anna, berta, hidden := uuid.New(), uuid.New(), uuid.New()
			s.set(online(anna, 3))
			s.set(offline(berta, 5))

			c.watch(2, &realtimev1.Watch{UserIds: []string{anna.String(), hidden.String(), berta.String(), anna.String()}})
			answer := c.watched(2)
			require.EqualValues(t, 2, answer.GetWatching())
			require.Len(t, answer.GetPresences(), 4)
			require.True(t, proto.Equal(online(anna, 3), answer.GetPresences()[0]))
			require.True(t, proto.Equal(&realtimev1.Presence{UserId: hidden.String()}, answer.GetPresences()[1]))
			require.True(t, proto.Equal(offline(berta, 5), answer.GetPresences()[2]))

			w.signal(hidden, online(hidden, 9), nil)
			w.signal(berta, online(berta, 5), nil) // told before
			w.signal(berta, online(berta, 6), nil)
			require.True(t, proto.Equal(online(berta, 6), c.receive().GetPush().GetPresence()))
			w.signal(berta, offline(berta, 4), nil) // late
			w.signal(anna, offline(anna, 4), nil)
			require.True(t, proto.Equal(offline(anna, 4), c.receive().GetPush().GetPresence()))

			s.set(offline(anna, 4))
			c.watch(3, &realtimev1.Watch{UserIds: []string{anna.String()}, RemoveUserIds: []string{berta.String()}})
			require.EqualValues(t, 1, c.watched(3).GetWatching())
			w.signal(berta, offline(berta, 7), nil)
			w.nothing(c, 4)
			c.watch(5, &realtimev1.Watch{Replace: true, UserIds: []string{berta.String()}})
			require.EqualValues(t, 1, c.watched(5).GetWatching())
			w.signal(anna, online(anna, 5), nil)
			w.nothing(c, 6)
			w.signal(berta, online(berta, 8), nil)
			require.True(t, proto.Equal(online(berta, 8), c.receive().GetPush().GetPresence()))

			require.NoError(t, c.ws.Close())
			require.Eventually(t, func() bool {
				links, people := w.gateway.presence.watches.total()
				return links == 0 && people == 0
			}, patience, time.Millisecond)
		})
	}
}

func TestOwnDevicesSeeTheTruth(t *testing.T) {
	t.Parallel()
	w, s := newWatchWorld(t)
	anna := newPerson()
	other, own := w.connect(newPerson(), SubprotocolProto), w.connect(anna, SubprotocolProto)
	s.set(offline(anna.user, 1))
	for _, c := range []*client{other, own} {
		c.watch(2, &realtimev1.Watch{UserIds: []string{anna.user.String()}})
		c.watched(2)
	}
	w.signal(anna.user, offline(anna.user, 2), online(anna.user, 7))
	require.True(t, proto.Equal(offline(anna.user, 2), other.receive().GetPush().GetPresence()))
	require.True(t, proto.Equal(online(anna.user, 7), own.receive().GetPush().GetPresence()))
	w.signal(anna.user, nil, offline(anna.user, 8))
	require.True(t, proto.Equal(offline(anna.user, 8), own.receive().GetPush().GetPresence()))
	w.nothing(other, 3)
}

// Somebody changes while the answer about them is on its way.
func TestWatchMissesNothing(t *testing.T) {
	t.Parallel()
	w, s := newWatchWorld(t)
	anna := uuid.New()
	s.set(offline(anna, 1))
	first := w.connect(newPerson(), SubprotocolProto)
	first.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
	first.watched(2)
	var once sync.Once
	s.mu.Lock()
	s.answered = func() {
		once.Do(func() {
			s.set(online(anna, 2))
			w.signal(anna, online(anna, 2), nil)
			first.receive() // the gateway has it
		})
	}
	s.mu.Unlock()
	c := w.connect(newPerson(), SubprotocolProto)
	c.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
	require.True(t, proto.Equal(online(anna, 2), c.watched(2).GetPresences()[0]))
	w.nothing(c, 3)
}

func TestWatchThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	w, s := newWatchWorld(t, func(s *setup) { s.cfg.Socket.Watches = 3 })
	c := w.connect(newPerson(), SubprotocolJSON)
	people := []string{uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()}
	for _, id := range people {
		s.set(online(uuid.MustParse(id), 1))
	}
	c.watch(2, &realtimev1.Watch{UserIds: people[:2]})
	require.EqualValues(t, 2, c.watched(2).GetWatching())
	c.watch(3, &realtimev1.Watch{UserIds: people[2:]})
	failure := c.receive().GetReply().GetError()
	require.Equal(t, errorv1.Reason_REASON_TOO_MANY_WATCHES, failure.GetInfo().GetReason())
	require.Equal(t, "3", failure.GetInfo().GetMetadata()["limit"])
	s.mu.Lock()
	s.fails = true
	s.mu.Unlock()
	c.watch(4, &realtimev1.Watch{UserIds: people[2:3], Replace: true})
	require.Equal(t, errorv1.Reason_REASON_UNAVAILABLE, c.receive().GetReply().GetError().GetInfo().GetReason())
	w.signal(uuid.MustParse(people[2]), offline(uuid.MustParse(people[2]), 9), nil)
	w.signal(uuid.MustParse(people[0]), offline(uuid.MustParse(people[0]), 9), nil)
	require.Equal(t, people[0], c.receive().GetPush().GetPresence().GetUserId())
	c.watch(5, &realtimev1.Watch{Replace: true})
	require.Zero(t, c.watched(5).GetWatching(), "nobody has to be asked to let go")
}

// stalled is a socket whose queue does not move until release is called.
func (w *world) stalled(c *client) (conn *connection, release func()) {
	w.t.Helper()
	w.gateway.hub.each(func(of *connection) { conn = of })
	require.NotNil(w.t, conn)
	require.Eventually(w.t, func() bool {
		conn.mu.Lock()
		defer conn.mu.Unlock()
		if conn.flushing {
			return false
		}
		conn.flushing, conn.flushSince = true, time.Now()
		return true
	}, patience, time.Millisecond)
	return conn, func() { go conn.flush() }
}

func TestEphemeraGiveWay(t *testing.T) {
	t.Parallel()
	typing := func(conversation, user uuid.UUID, until int64) *realtimev1.Push {
		return &realtimev1.Push{Event: &realtimev1.Push_Typing{Typing: &messagingv1.Typing{
			ConversationId: conversation.String(), UserId: user.String(), Until: timestamppb.New(time.Unix(until, 0)),
		}}}
	}
	push := func(c *connection, p *realtimev1.Push) {
		payload, err := proto.Marshal(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: p}})
		require.NoError(t, err)
		c.push(c.gw.hub.cache.get(payload, time.Now()))
	}

	t.Run("TheLastOfEachCounts", func(t *testing.T) {
		t.Parallel()
		w, _ := newWatchWorld(t)
		client := w.connect(newPerson(), SubprotocolProto)
		c, release := w.stalled(client)
		conversation, anna, berta := uuid.New(), uuid.New(), uuid.New()
		for i := range int64(50) {
			c.push(w.gateway.presence.prepare(anna, online(anna, i)))
			c.push(w.gateway.presence.prepare(berta, offline(berta, i)))
			push(c, typing(conversation, anna, i))
		}
		push(c, entryPush(1))
		release()
		require.EqualValues(t, 49, client.receive().GetPush().GetPresence().GetVersion())
		require.EqualValues(t, 49, client.receive().GetPush().GetPresence().GetVersion())
		require.EqualValues(t, 49, client.receive().GetPush().GetTyping().GetUntil().GetSeconds())
		require.NotNil(t, client.receive().GetPush().GetEntry())
	})
	t.Run("WhatHasToArriveDoes", func(t *testing.T) {
		t.Parallel()
		w, _ := newWatchWorld(t, func(s *setup) { s.cfg.Socket.QueueBytes = 4096 })
		client := w.connect(newPerson(), SubprotocolProto)
		c, release := w.stalled(client)
		for range 100 { // more than half of the queue
			person := uuid.New()
			c.push(w.gateway.presence.prepare(person, online(person, 1)))
		}
		soft := 0
		c.mu.Lock()
		for i := range c.queue { // the Resync that tells of the dropped ones may be there already
			if c.queue[i].soft != nil {
				soft += len(c.queue[i].payload) + itemOverhead
			}
		}
		c.mu.Unlock()
		require.Positive(t, soft)
		require.LessOrEqual(t, soft, 2048)
		entries := 0
		for c.mu.Lock(); c.queued+300 < 4096; c.mu.Lock() { // fills it to the brim
			c.mu.Unlock()
			entries++
			push(c, entryPush(int64(entries)))
		}
		c.mu.Unlock()
		for range 5 { // which takes the room of all ephemera
			entries++
			push(c, entryPush(int64(entries)))
		}
		release()
		got, resynced := 0, false
		for got < entries || !resynced {
			frame := client.receive()
			require.Nil(t, frame.GetPush().GetPresence())
			if frame.GetPush().GetEntry() != nil {
				got++
			}
			resynced = resynced || frame.GetResync() != nil
		}
	})
}

// devicesOf is who is connected where, by the roll.
func devicesOf(t *testing.T, redis rueidis.Client, user uuid.UUID) []presence.Device {
	t.Helper()
	claims, err := presence.NewRoster(redis).Claim(t.Context(), presence.ShardOf(user), time.Now(), time.Millisecond, 100)
	require.NoError(t, err)
	for _, c := range claims {
		if c.User == user {
			return c.Devices
		}
	}
	return nil
}

func TestConnectionsAreReported(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t) + "?protocol=2&client_cache=0"
	open := func() rueidis.Client {
		client, err := cache.Open(url, "test")
		require.NoError(t, err)
		t.Cleanup(client.Close)
		return client
	}
	redis := open()
	one, _ := newWatchWorld(t, func(s *setup) { s.redis = open() })
	two, _ := newWatchWorld(t, func(s *setup) { s.redis, s.keys = open(), one.staticKeys() })
	two.key = one.key
	anna := newPerson()
	laptop := person{anna.user, uuid.New()}

	phone := one.dial(SubprotocolJSON)
	phone.send(&realtimev1.ClientFrame{Id: 1, Frame: &realtimev1.ClientFrame_Authenticate{Authenticate: &realtimev1.Authenticate{
		AccessToken: one.token(anna, time.Hour), Device: realtimev1.DeviceKind_DEVICE_KIND_MOBILE,
	}}})
	require.NotNil(t, phone.receive().GetWelcome())
	again := one.connect(anna, SubprotocolProto) // the same session
	header := http.Header{"Authorization": {"Bearer " + two.token(laptop, time.Hour)}, deviceHeader: {"desktop"}}
	ws, response, err := two.dialer(SubprotocolProto).DialContext(t.Context(), two.socketURL(), header)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	desk := two.wrap(ws)
	require.NotNil(t, desk.receive().GetWelcome())

	require.Eventually(t, func() bool {
		devices := devicesOf(t, redis, anna.user)
		if len(devices) != 2 {
			return false
		}
		for _, d := range devices {
			if d.Session == laptop.session && d.Kind != realtimev1.DeviceKind_DEVICE_KIND_DESKTOP {
				return false
			}
		}
		return true
	}, patience, 5*time.Millisecond)
	for _, c := range []*client{phone, again} {
		require.NoError(t, c.ws.Close())
	}
	require.Eventually(t, func() bool { return len(devicesOf(t, redis, anna.user)) == 1 }, patience, 5*time.Millisecond)
	two.stop() // in good order: nobody waits for the lease
	<-two.stopped
	require.Eventually(t, func() bool {
		_, err := presence.NewRoster(redis).Sweep(t.Context(), presence.ShardOf(anna.user))
		require.NoError(t, err)
		return len(devicesOf(t, redis, anna.user)) == 0
	}, patience, 5*time.Millisecond)
}
