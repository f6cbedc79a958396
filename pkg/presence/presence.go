// Package presence is what gateways and the user service share to know who is
// connected: the roll in Redis, and the signals on NATS.
//
// It owns the keys of the roll and the subjects of the signals. A gateway writes
// down who is connected to it (Reporter); the user service reads what changed
// (Roster), decides what it means, and tells all gateways (Signals), which tell
// those of their clients who watch (Follow).
//
// Invariants: what stands in the roll is true as far as its gateway lives: all
// that a gateway wrote stands under a lease of its own, kept by one heartbeat, and
// without the lease it is taken back (Sweep). Every change of a person's devices
// leaves that person due, in the same step, until somebody has settled it; so no
// crash between any two lines loses a change. Each step is one script on one slot
// of Redis: keys are spread over Shards by person, and a shard's keys share a hash
// tag.
//
// It never keeps what cannot be made anew: gateways know who is connected to them
// and write the roll again after a lost lease or an emptied Redis. It knows nothing
// of grace, of being invisible, or of who may see whom.
//
// The keys of shard 07, all with a TTL:
//
//	presence:{07}:lease:<lease>   the number of the last report under it
//	presence:{07}:leases          all leases (set), the dead ones that are not swept too
//	presence:{07}:of:<lease>      the people who are connected under it (set)
//	presence:{07}:user:<id>       a person's devices by lease (hash); c = claimed, l = left at
//	presence:{07}:due             the people to look at, by when (sorted set; 0 = at once)
package presence

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// Shards is how many parts people are spread over, in Redis and on NATS. It is the
// same for every process of a deployment.
const Shards = 16

// ShardOf is the shard of a person. The last byte of an id is random in every
// version of UUID that is made here.
func ShardOf(user uuid.UUID) int { return int(user[15]) % Shards }

// rollLife is the TTL of what is kept up by work rather than by time: the roll of a
// deployment that nobody runs any more. Reporters write everything again many times
// within it.
const rollLife = 24 * time.Hour

// Device is one session that is connected.
type Device struct {
	Session uuid.UUID
	Kind    realtimev1.DeviceKind
}

// maxDevices of one person under one lease are written down, so that a value stays
// small. A gateway limits sockets per person far below.
const maxDevices = 128

// encodeDevices writes devices as they stand in the roll: a digit for the kind and
// the session, each. Kinds above 9 do not exist; they would count as unknown.
func encodeDevices(devices []Device) string {
	var b strings.Builder
	for i, d := range devices {
		if i == maxDevices {
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		kind := d.Kind
		if kind < 0 || kind > 9 {
			kind = 0
		}
		b.WriteByte('0' + byte(kind))
		b.WriteString(base64.RawURLEncoding.EncodeToString(d.Session[:]))
	}
	return b.String()
}

// decodeDevices adds what encodeDevices wrote to devices, each session once: a
// session may have sockets on two gateways. What does not parse is left out.
func decodeDevices(devices []Device, text string) []Device {
	for part := range strings.SplitSeq(text, ",") {
		if len(part) < 2 || part[0] < '0' || part[0] > '9' {
			continue
		}
		raw, err := base64.RawURLEncoding.DecodeString(part[1:])
		if err != nil {
			continue
		}
		session, err := uuid.FromBytes(raw)
		if err != nil || hasSession(devices, session) {
			continue
		}
		devices = append(devices, Device{Session: session, Kind: realtimev1.DeviceKind(part[0] - '0')})
	}
	return devices
}

func hasSession(devices []Device, session uuid.UUID) bool {
	for _, d := range devices {
		if d.Session == session {
			return true
		}
	}
	return false
}

// shardKeys are the keys of a shard.
type shardKeys struct{ prefix string }

func keysOf(shard int) shardKeys { return shardKeys{fmt.Sprintf("presence:{%02d}:", shard)} }

func (k shardKeys) lease(lease string) string { return k.prefix + "lease:" + lease }
func (k shardKeys) leases() string            { return k.prefix + "leases" }
func (k shardKeys) of(lease string) string    { return k.prefix + "of:" + lease }
func (k shardKeys) user() string              { return k.prefix + "user:" } // and the id
func (k shardKeys) due() string               { return k.prefix + "due" }

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
