package gateway

import (
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/presence"
)

// doubt has the watches of somebody be told nothing more until they are granted
// again, by an answer to a question that was begun later than this. It visits their
// sockets, which have to see to that: those of one viewer, or of everybody if that
// is nobody. visit must neither block nor come back here.
func (w *watches) doubt(key, viewer uuid.UUID, visit func(*connection)) {
	s := &w.shards[presence.ShardOf(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	person := s.find(w.hash(key), key)
	if person == 0 {
		return
	}
	w.socketsMu.RLock()
	defer w.socketsMu.RUnlock()
	for link := s.people.at(person).first; link != 0; {
		at := s.links.at(link)
		if c := w.sockets[at.socket&socketMask]; c != nil && (viewer == uuid.Nil || c.user == viewer) {
			at.socket |= pendingWatch | doubtedWatch
			visit(c)
		}
		link = at.next
	}
}

// ask says that a question about somebody begins: its answer may grant the watch
// unless a doubt comes meanwhile.
func (w *watches) ask(l *watchList, key uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	shard := presence.ShardOf(key)
	s := &w.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	if person := s.find(w.hash(key), key); person != 0 {
		if at := s.linkOf(l, shard, person); at >= 0 {
			s.links.at(l.refs[at] & refMask).socket &^= doubtedWatch
		}
	}
}
