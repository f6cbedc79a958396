package gateway

import (
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/realtime"
)

// errTooManySockets is returned to the socket that is one too many.
var errTooManySockets = errors.New("the person has too many sockets here")

const hubShards = 64

// hub knows the open sockets: by person for pushes, by session for revocations.
// Each person connected here is subscribed once, however many sockets.
type hub struct {
	subscriber *realtime.Subscriber
	limit      int // sockets per person
	// changed, if set, is told of people whose sockets are others than before.
	changed func(user uuid.UUID)
	cache   *preparedCache

	users    [hubShards]userShard
	sessions [hubShards]sessionShard

	strangersMu sync.Mutex
	strangers   map[*connection]struct{} // not authenticated
}

// userShard holds lists of sockets, linked by nextOfUser. Its lock is held while
// a subscription is made or dropped: otherwise a socket that comes and one that
// goes could leave a person without it.
type userShard struct {
	mu    sync.RWMutex
	first map[uuid.UUID]*connection
}

// sessionShard holds lists linked by nextOfSession.
type sessionShard struct {
	mu    sync.RWMutex
	first map[uuid.UUID]*connection
}

func newHub(limit int) *hub {
	h := &hub{limit: limit, cache: newPreparedCache(), strangers: make(map[*connection]struct{})}
	for i := range hubShards {
		h.users[i].first = make(map[uuid.UUID]*connection)
		h.sessions[i].first = make(map[uuid.UUID]*connection)
	}
	return h
}

func shardOf(id uuid.UUID) int { return int(id[15]) % hubShards }

// greet takes in a socket that has not authenticated.
func (h *hub) greet(c *connection) {
	h.strangersMu.Lock()
	defer h.strangersMu.Unlock()
	h.strangers[c] = struct{}{}
}

func (h *hub) dismiss(c *connection) {
	h.strangersMu.Lock()
	defer h.strangersMu.Unlock()
	delete(h.strangers, c)
}

// add makes an authenticated socket reachable. After an error it is not.
func (h *hub) add(c *connection) error {
	if err := h.addUser(c); err != nil {
		return err
	}
	s := &h.sessions[shardOf(c.session)]
	s.mu.Lock()
	c.nextOfSession = s.first[c.session]
	s.first[c.session] = c
	s.mu.Unlock()
	h.dismiss(c)
	h.tellChanged(c.user)
	return nil
}

func (h *hub) tellChanged(user uuid.UUID) {
	if h.changed != nil {
		h.changed(user)
	}
}

func (h *hub) addUser(c *connection) error {
	s := &h.users[shardOf(c.user)]
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.first[c.user]
	count := 0
	for other := first; other != nil; other = other.nextOfUser {
		count++
	}
	if count >= h.limit {
		return errTooManySockets
	}
	if first == nil {
		if err := h.subscriber.Subscribe(c.user); err != nil {
			return err
		}
	}
	c.nextOfUser = first
	s.first[c.user] = c
	return nil
}

// remove forgets a socket, wherever it is. Removing it twice is harmless.
func (h *hub) remove(c *connection) {
	h.dismiss(c)
	if c.user == uuid.Nil {
		return
	}
	h.removeUser(c)
	h.tellChanged(c.user)
	s := &h.sessions[shardOf(c.session)]
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := s.first[c.session]; at != nil; at = at.nextOfSession {
		if at == c {
			s.first[c.session] = c.nextOfSession
			break
		}
		if at.nextOfSession == c {
			at.nextOfSession = c.nextOfSession
			break
		}
	}
	if s.first[c.session] == nil {
		delete(s.first, c.session)
	}
}

func (h *hub) removeUser(c *connection) {
	s := &h.users[shardOf(c.user)]
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.first[c.user]
	if first == nil {
		return
	}
	if first == c {
		if c.nextOfUser == nil {
			delete(s.first, c.user)
			h.subscriber.Unsubscribe(c.user)
			return
		}
		s.first[c.user] = c.nextOfUser
		return
	}
	for at := first; at != nil; at = at.nextOfUser {
		if at.nextOfUser == c {
			at.nextOfUser = c.nextOfUser
			return
		}
	}
}

// deliver hands a push to all sockets of a person. It never blocks.
func (h *hub) deliver(user uuid.UUID, payload []byte) {
	s := &h.users[shardOf(user)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	first := s.first[user]
	if first == nil {
		return // the last socket has just gone
	}
	p := h.cache.get(payload, time.Now())
	for c := first; c != nil; c = c.nextOfUser {
		c.push(p)
	}
}

// endSession closes the sockets of a session that was ended.
func (h *hub) endSession(session uuid.UUID) {
	s := &h.sessions[shardOf(session)]
	s.mu.RLock()
	defer s.mu.RUnlock()
	for c := s.first[session]; c != nil; c = c.nextOfSession {
		c.end(closeUnauthentic, "SESSION_REVOKED")
	}
}

// each visits all authenticated sockets; do must neither block nor come back to
// the hub.
func (h *hub) each(do func(*connection)) {
	for i := range h.users {
		s := &h.users[i]
		s.mu.RLock()
		for _, first := range s.first {
			for c := first; c != nil; c = c.nextOfUser {
				do(c)
			}
		}
		s.mu.RUnlock()
	}
}

// eachStranger visits the sockets that have not authenticated, by the same rules.
func (h *hub) eachStranger(do func(*connection)) {
	h.strangersMu.Lock()
	defer h.strangersMu.Unlock()
	for c := range h.strangers {
		do(c)
	}
}
