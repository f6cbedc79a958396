package gateway

import (
	"hash/maphash"
	"sync"

	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/presence"
)

// watches knows which sockets watch whom.
//
// There may be thirty watches for each socket, and most of them of people whom
// nobody else here watches, so a watch has to be small: 16 bytes, and 36 for each
// person who is watched by anybody. Maps, and slices of pointers, cost three times
// that. Therefore everything is a number: people and watches stand in slabs, linked
// by their places there, and only sockets are pointers, one each. What was used once
// is used again and never given back.
type watches struct {
	seed   maphash.Seed
	shards [presence.Shards]watchShard

	socketsMu sync.RWMutex
	sockets   []*connection // by number; nil if free
	spare     []uint32      // free numbers
}

// watchShard holds people of one shard. Its lock is taken before that of sockets
// and before connection.mu.
type watchShard struct {
	mu     sync.Mutex
	people slab[watchedPerson]
	links  slab[watchLink]
	// table finds people: open addressing with linear probing. 0 is empty.
	table []uint32
	count int
}

// watchedPerson is somebody with at least one watcher. Its fields are of four bytes:
// one of eight would make it four bytes larger.
type watchedPerson struct {
	key       uuid.UUID
	high, low uint32 // version
	first     uint32
}

// version is that of what all watchers were told last.
func (p *watchedPerson) version() int64 { return int64(p.high)<<32 | int64(p.low) }

func (p *watchedPerson) setVersion(version int64) {
	p.high, p.low = uint32(version>>32), uint32(version)
}

// watchLink is one watch. socket has pendingWatch set until it is known whether the
// watcher may see the person, and doubtedWatch while all answers that are on their
// way are older than a change of that.
type watchLink struct {
	socket, person uint32
	next, previous uint32
}

const (
	pendingWatch = 1 << 31
	doubtedWatch = 1 << 30
	socketMask   = doubtedWatch - 1
	// A watch's name on its socket is its place in the slab and the shard above it.
	refBits = 28
	refMask = 1<<refBits - 1
	// 512 people of 28 bytes, and 512 watches of 16, are sizes that the allocator has.
	chunkBits = 9
	chunkSize = 1 << chunkBits
	tableMin  = 64
)

// watchList is the watches of one socket. It belongs to the socket's lane of
// watches, and to finish after that.
type watchList struct {
	mu     sync.Mutex
	socket uint32
	refs   []uint32
	ended  bool
}

func newWatches() *watches { return &watches{seed: maphash.MakeSeed()} }

// slab is an array in chunks that never move. Place 0 is nobody's.
type slab[T any] struct {
	chunks [][]T
	used   uint32
	free   []uint32
}

func (s *slab[T]) at(i uint32) *T { return &s.chunks[i>>chunkBits][i&(chunkSize-1)] }

func (s *slab[T]) take() uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	if s.used++; int(s.used>>chunkBits) >= len(s.chunks) {
		s.chunks = append(s.chunks, make([]T, chunkSize))
	}
	return s.used
}

func (s *slab[T]) give(i uint32) {
	var zero T
	*s.at(i) = zero
	s.free = append(s.free, i)
}

// join gives a socket its number.
func (w *watches) join(c *connection) *watchList {
	w.socketsMu.Lock()
	defer w.socketsMu.Unlock()
	if n := len(w.spare); n > 0 {
		i := w.spare[n-1]
		w.spare = w.spare[:n-1]
		w.sockets[i] = c
		return &watchList{socket: i}
	}
	w.sockets = append(w.sockets, c)
	return &watchList{socket: uint32(len(w.sockets) - 1)}
}

// leave ends all watches of a socket. It may be called while the socket's lane
// still works: what that adds afterwards is refused.
func (w *watches) leave(l *watchList) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	for _, ref := range l.refs {
		s := &w.shards[ref>>refBits]
		s.mu.Lock()
		w.unlink(s, ref&refMask)
		s.mu.Unlock()
	}
	l.refs = nil
	w.socketsMu.Lock()
	defer w.socketsMu.Unlock()
	w.sockets[l.socket] = nil
	w.spare = append(w.spare, l.socket)
}

// add begins a watch, which is told of nothing until it is granted. False if there
// is one already, or the socket has gone.
func (w *watches) add(l *watchList, key uuid.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	shard := presence.ShardOf(key)
	s := &w.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.ended {
		return false
	}
	person := s.find(w.hash(key), key)
	if person != 0 && s.linkOf(l, shard, person) >= 0 {
		return false
	}
	if person == 0 {
		person = s.people.take()
		s.people.at(person).key = key
		w.insert(s, person)
	}
	link := s.links.take()
	p := s.people.at(person)
	*s.links.at(link) = watchLink{socket: l.socket | pendingWatch, person: person, next: p.first}
	if p.first != 0 {
		s.links.at(p.first).previous = link
	}
	p.first = link
	l.refs = append(l.refs, uint32(shard)<<refBits|link)
	return true
}

// grant has a watch be told from now on. It returns whether something newer than
// version was told to others meanwhile, or who may see whom has changed: then the
// watcher has to look again.
//
// version is what this watcher knows, and the others do not: the signal that will
// tell them may still be on its way. Only who watches alone is not told it again.
func (w *watches) grant(l *watchList, key uuid.UUID, version int64) (outdated bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	shard := presence.ShardOf(key)
	s := &w.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	person := s.find(w.hash(key), key)
	if person == 0 {
		return false
	}
	at := s.linkOf(l, shard, person)
	if at < 0 {
		return false
	}
	link := s.links.at(l.refs[at] & refMask)
	if link.socket&doubtedWatch != 0 {
		return true
	}
	link.socket &^= pendingWatch
	p := s.people.at(person)
	if p.version() > version {
		return true
	}
	if s.links.at(p.first).next == 0 {
		p.setVersion(version)
	}
	return false
}

// remove ends a watch, if there is one.
func (w *watches) remove(l *watchList, key uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	shard := presence.ShardOf(key)
	s := &w.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	person := s.find(w.hash(key), key)
	if person == 0 {
		return
	}
	at := s.linkOf(l, shard, person)
	if at < 0 {
		return
	}
	w.unlink(s, l.refs[at]&refMask)
	last := len(l.refs) - 1
	l.refs[at] = l.refs[last]
	l.refs = l.refs[:last]
}

// keys lists whom a socket watches.
func (w *watches) keys(l *watchList) []uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := make([]uuid.UUID, 0, len(l.refs))
	for _, ref := range l.refs {
		s := &w.shards[ref>>refBits]
		s.mu.Lock()
		keys = append(keys, s.people.at(s.links.at(ref&refMask).person).key)
		s.mu.Unlock()
	}
	return keys
}

// tell visits those who watch somebody, unless this version was told before. visit
// must neither block nor come back here.
func (w *watches) tell(key uuid.UUID, version int64, visit func(*connection)) {
	s := &w.shards[presence.ShardOf(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	person := s.find(w.hash(key), key)
	if person == 0 {
		return
	}
	p := s.people.at(person)
	if version <= p.version() {
		return
	}
	p.setVersion(version)
	w.socketsMu.RLock()
	defer w.socketsMu.RUnlock()
	for link := p.first; link != 0; {
		at := s.links.at(link)
		if at.socket&pendingWatch == 0 {
			if c := w.sockets[at.socket&socketMask]; c != nil {
				visit(c)
			}
		}
		link = at.next
	}
}

// total counts watches and the people who are watched.
func (w *watches) total() (links, people int64) {
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		links += int64(s.links.used) - int64(len(s.links.free))
		people += int64(s.count)
		s.mu.Unlock()
	}
	return links, people
}

// linkOf finds the place in l.refs of its watch of a person; -1 if there is none.
func (s *watchShard) linkOf(l *watchList, shard int, person uint32) int {
	for i, ref := range l.refs {
		if int(ref>>refBits) == shard && s.links.at(ref&refMask).person == person {
			return i
		}
	}
	return -1
}

// unlink ends a watch, and forgets the person with the last one.
func (w *watches) unlink(s *watchShard, link uint32) {
	at := *s.links.at(link)
	if at.next != 0 {
		s.links.at(at.next).previous = at.previous
	}
	p := s.people.at(at.person)
	if at.previous != 0 {
		s.links.at(at.previous).next = at.next
	} else {
		p.first = at.next
	}
	s.links.give(link)
	if p.first == 0 {
		w.erase(s, at.person)
		s.people.give(at.person)
	}
}

// hash is keyed, because clients choose whom they watch.
func (w *watches) hash(key uuid.UUID) uint32 { return uint32(maphash.Bytes(w.seed, key[:])) }

func (s *watchShard) find(hash uint32, key uuid.UUID) uint32 {
	if len(s.table) == 0 {
		return 0
	}
	mask := uint32(len(s.table) - 1)
	for at := hash & mask; s.table[at] != 0; at = (at + 1) & mask {
		if s.people.at(s.table[at]).key == key {
			return s.table[at]
		}
	}
	return 0
}

// insert puts somebody new into the table, which is kept at most three quarters
// full.
func (w *watches) insert(s *watchShard, person uint32) {
	if (s.count+1)*4 > len(s.table)*3 {
		old := s.table
		s.table = make([]uint32, max(tableMin, 2*len(old)))
		for _, p := range old {
			if p != 0 {
				w.place(s, p)
			}
		}
	}
	w.place(s, person)
	s.count++
}

func (w *watches) place(s *watchShard, person uint32) {
	mask := uint32(len(s.table) - 1)
	at := w.hash(s.people.at(person).key) & mask
	for s.table[at] != 0 {
		at = (at + 1) & mask
	}
	s.table[at] = person
}

// erase takes somebody out of the table and closes the gap: whoever stands behind
// it and would not be found any more moves up.
func (w *watches) erase(s *watchShard, person uint32) {
	mask := uint32(len(s.table) - 1)
	at := w.hash(s.people.at(person).key) & mask
	for s.table[at] != person {
		at = (at + 1) & mask
	}
	s.count--
	for next := (at + 1) & mask; s.table[next] != 0; next = (next + 1) & mask {
		home := w.hash(s.people.at(s.table[next]).key) & mask
		if (next-home)&mask >= (next-at)&mask {
			s.table[at] = s.table[next]
			at = next
		}
	}
	s.table[at] = 0
}
