package gateway

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/realtime"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// prepared is one push, shared by all sockets that get it.
type prepared struct {
	payload []byte // the binary ServerFrame as it came off the bus
	at      time.Time
	kind    kind
	soft    *softKey         // nil: it must not be left out
	origin  *realtime.Origin // nil: its trace is not sampled

	once    sync.Once
	json    []byte
	jsonErr error
}

// asJSON transcodes at the first JSON socket and never again.
func (p *prepared) asJSON() ([]byte, error) {
	p.once.Do(func() {
		frame := &realtimev1.ServerFrame{}
		if err := proto.Unmarshal(p.payload, frame); err != nil {
			p.jsonErr = fmt.Errorf("decode push: %w", err)
			return
		}
		p.json, p.jsonErr = protojson.Marshal(frame)
	})
	return p.json, p.jsonErr
}

const (
	preparedShards = 16
	// preparedPerShard bounds a generation: 16 * 2 * 256 pushes. That is a few MB of
	// usual messages, and 250 MB if each has the longest text and a JSON socket.
	preparedPerShard = 256
	// preparedLife is for how long equal bytes are one push. A push to a group comes
	// off the bus as one burst, so a short memory is enough. Beyond it they are a push
	// that is repeated, which has a time of its own: with that of the first one a
	// hiccup of the bus would look like a minute's delivery.
	preparedLife = time.Second
)

// preparedCache finds the push that came within preparedLife for another person with
// the very same bytes. N members on one gateway then queue one copy, and it is
// transcoded once.
type preparedCache struct {
	seed   maphash.Seed
	shards [preparedShards]preparedShard
}

// preparedShard keeps two generations; a full young one becomes the old one.
type preparedShard struct {
	mu         sync.Mutex
	young, old map[uint64]*prepared
}

func newPreparedCache() *preparedCache {
	return &preparedCache{seed: maphash.MakeSeed()}
}

func (c *preparedCache) get(payload []byte, at time.Time) *prepared {
	sum := maphash.Bytes(c.seed, payload)
	s := &c.shards[sum%preparedShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, generation := range [...]map[uint64]*prepared{s.young, s.old} {
		if p, ok := generation[sum]; ok && at.Sub(p.at) <= preparedLife && bytes.Equal(p.payload, payload) {
			return p
		}
	}
	p := &prepared{payload: payload, at: at}
	p.kind, p.soft = classify(payload)
	if s.young == nil || len(s.young) >= preparedPerShard {
		s.old, s.young = s.young, make(map[uint64]*prepared, 16)
	}
	s.young[sum] = p
	return p
}
