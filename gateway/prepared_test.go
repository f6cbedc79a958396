package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/realtime"
)

// Equal bytes are one push while its burst lasts. Whoever repeats it later, as the
// relay does, has a push of its own, whose delivery is measured from its arrival.
func TestPreparedIsOneBurst(t *testing.T) {
	t.Parallel()
	cache, began := newPreparedCache(), time.Now()
	payload := func() []byte { return []byte("the very same bytes") }
	first := cache.get(payload(), began)
	require.Same(t, first, cache.get(payload(), began.Add(preparedLife)))
	later := began.Add(40 * time.Second)
	again := cache.get(payload(), later)
	require.NotSame(t, first, again)
	require.Equal(t, later, again.at)
	require.Same(t, again, cache.get(payload(), later.Add(time.Millisecond)))
}

// A push that a JSON socket cannot be given is lost for it, and it is told so.
func TestPushThatIsNoJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newPerson()
	c := w.connect(p, SubprotocolJSON)
	frame, err := realtime.Encode(entryPush(1))
	require.NoError(t, err)
	w.gateway.hub.deliver(p.user, append(frame, 0xff))
	require.NotNil(t, c.receive().GetResync())
	w.gateway.hub.deliver(p.user, frame)
	require.NotNil(t, c.receive().GetPush(), "the socket goes on")
}

// A client that takes nothing is noticed within the time of a write, whatever else
// the socket waits for.
func TestStuckWriteIsCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *setup) {
		s.cfg.Socket.WriteTimeout = 100 * time.Millisecond
		// Nothing else wakes it.
		s.cfg.Socket.PingInterval, s.cfg.Socket.DeadAfter, s.cfg.Socket.AuthTimeout = time.Hour, time.Hour, time.Hour
		s.cfg.Socket.QueueBytes = 1 << 30
	})
	p := newPerson()
	w.connect(p, SubprotocolProto) // and never reads again
	open := func() (n int) {
		w.gateway.hub.each(func(*connection) { n++ })
		return n
	}
	require.Equal(t, 1, open())
	large := make([]byte, 1<<20)
	for range 32 { // more than the kernel takes
		w.gateway.hub.deliver(p.user, large)
	}
	require.Eventually(t, func() bool { return open() == 0 }, patience, 5*time.Millisecond)
}
