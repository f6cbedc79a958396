package gateway

import (
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/presence"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// recheck tells all gateways that somebody may be seen by others than before.
func (w *world) recheck(user, viewer uuid.UUID) {
	w.t.Helper()
	require.NoError(w.t, presence.PublishRechecks(w.t.Context(), w.conn, presence.Pair{User: user, Viewer: viewer}))
}

func (s *sightings) hide(user uuid.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.people, user)
}

// resynced reads a Resync and watches anew, as every client does.
func (c *client) resynced(id uint32, user uuid.UUID) *realtimev1.Watched {
	c.t.Helper()
	require.NotNil(c.t, c.receive().GetResync())
	c.watch(id, &realtimev1.Watch{Replace: true, UserIds: []string{user.String()}})
	return c.watched(id)
}

// What one watcher is answered is news to the others all the same.
func TestAnAnswerTellsNobodyElse(t *testing.T) {
	t.Parallel()
	w, s := newWatchWorld(t)
	anna := uuid.New()
	s.set(online(anna, 5))
	first, second := w.connect(newPerson(), SubprotocolProto), w.connect(newPerson(), SubprotocolJSON)
	first.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
	first.watched(2)
	s.set(offline(anna, 6)) // committed, and not told yet
	second.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
	require.True(t, proto.Equal(offline(anna, 6), second.watched(2).GetPresences()[0]))
	w.signal(anna, offline(anna, 6), nil)
	require.True(t, proto.Equal(offline(anna, 6), first.receive().GetPush().GetPresence()))
	require.True(t, proto.Equal(offline(anna, 6), second.receive().GetPush().GetPresence()), "the same again does no harm")
	w.signal(anna, offline(anna, 6), nil) // told again, after a crash
	w.nothing(first, 3)
}

func TestWatchesAreRechecked(t *testing.T) {
	t.Parallel()
	t.Run("OfOneViewer", func(t *testing.T) {
		t.Parallel()
		w, s := newWatchWorld(t)
		anna, blocked := uuid.New(), newPerson()
		s.set(online(anna, 5))
		other, out := w.connect(newPerson(), SubprotocolProto), w.connect(blocked, SubprotocolProto)
		for _, c := range []*client{other, out} {
			c.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
			c.watched(2)
		}
		s.hide(anna)
		w.recheck(anna, blocked.user)
		w.signal(anna, offline(anna, 6), nil)
		require.True(t, proto.Equal(offline(anna, 6), other.receive().GetPush().GetPresence()))
		answer := out.resynced(3, anna)
		require.Zero(t, answer.GetWatching(), "shut out")
		require.True(t, proto.Equal(&realtimev1.Presence{UserId: anna.String()}, answer.GetPresences()[0]))
		w.signal(anna, online(anna, 7), nil)
		require.True(t, proto.Equal(online(anna, 7), other.receive().GetPush().GetPresence()))
		w.nothing(out, 4)
	})
	t.Run("OfEverybody", func(t *testing.T) {
		t.Parallel()
		w, s := newWatchWorld(t, func(s *setup) { s.cfg.Socket.ResyncWindow = 0 })
		anna := uuid.New()
		s.set(online(anna, 5))
		c := w.connect(newPerson(), SubprotocolJSON)
		c.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
		c.watched(2)
		w.recheck(anna, uuid.Nil)
		w.signal(anna, offline(anna, 6), nil) // held back: it is not known whether it may be told
		s.set(offline(anna, 6))
		require.True(t, proto.Equal(offline(anna, 6), c.resynced(3, anna).GetPresences()[0]))
		w.signal(anna, online(anna, 7), nil)
		require.True(t, proto.Equal(online(anna, 7), c.receive().GetPush().GetPresence()), "told again")
	})
	t.Run("WhileTheAnswerIsOnItsWay", func(t *testing.T) {
		t.Parallel()
		w, s := newWatchWorld(t)
		anna, by := uuid.New(), newPerson()
		s.set(online(anna, 5))
		var once sync.Once
		s.mu.Lock()
		s.answered = func() {
			once.Do(func() { // the answer was made before
				s.hide(anna)
				w.recheck(anna, by.user)
				w.settled()
			})
		}
		s.mu.Unlock()
		c := w.connect(by, SubprotocolProto)
		c.watch(2, &realtimev1.Watch{UserIds: []string{anna.String()}})
		var watched bool
		for range 2 { // the Resync may come before the answer
			watched = c.receive().GetReply() != nil || watched
		}
		require.True(t, watched)
		w.signal(anna, offline(anna, 6), nil)
		w.nothing(c, 3)
	})
}

// settled returns when the gateway has taken every signal before it.
func (w *world) settled() {
	w.t.Helper()
	probe, watches := uuid.New(), w.gateway.presence.watches
	list := watches.join(&connection{gw: w.gateway})
	defer watches.leave(list)
	require.True(w.t, watches.add(list, probe))
	require.Eventually(w.t, func() bool {
		w.signal(probe, online(probe, 1), nil)
		return watches.grant(list, probe, 0)
	}, patience, 5*time.Millisecond)
}
