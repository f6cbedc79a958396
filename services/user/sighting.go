package user

import (
	"math"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/presence"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

// sighting is what was told about a person last. Its methods return what is to be
// told next; version says whether that is anything new to the own devices, and
// shownVersion whether it is to others.
type sighting struct {
	user         uuid.UUID
	online       bool
	devices      deviceCounts
	lastSeen     time.Time // while online: since when
	invisible    bool
	shownSeen    time.Time // lastSeen for others
	version      int64
	shownVersion int64
}

// deviceCounts is the number of devices by realtimev1.DeviceKind; a kind of a later
// release counts as the first, which is "unknown".
type deviceCounts [realtimev1.DeviceKind_DEVICE_KIND_WEB + 1]uint8

func countDevices(devices []presence.Device) deviceCounts {
	var counts deviceCounts
	for _, d := range devices {
		kind := int(d.Kind)
		if kind >= len(counts) {
			kind = 0
		}
		if counts[kind] < 255 {
			counts[kind]++
		}
	}
	return counts
}

// never is a time at which nobody was seen.
func never(t time.Time) bool { return t.Unix() <= 0 }

// connected is after these devices were found connected.
func (s sighting) connected(devices deviceCounts, now time.Time) sighting {
	if s.online && s.devices == devices {
		return s
	}
	if !s.online {
		s.online, s.lastSeen = true, now
	}
	s.devices = devices
	if !s.invisible {
		s.shownSeen = s.lastSeen
	}
	return s.changed(now, !s.invisible)
}

// gone is after the last device left.
func (s sighting) gone(left, now time.Time) sighting {
	if !s.online {
		return s
	}
	s.online, s.devices, s.lastSeen = false, deviceCounts{}, left
	if !s.invisible {
		s.shownSeen = left
	}
	return s.changed(now, !s.invisible)
}

// hidden is after the person has decided whether to be seen. What happened while
// invisible is never told, also not afterwards: only who is online when they become
// visible is seen then.
func (s sighting) hidden(invisible bool, now time.Time) sighting {
	if s.invisible == invisible {
		return s
	}
	s.invisible = invisible
	switch {
	case !s.online:
	case invisible:
		s.shownSeen = now
	default:
		s.shownSeen = s.lastSeen
	}
	return s.changed(now, s.online)
}

// changed raises the versions.
func (s sighting) changed(now time.Time, toOthers bool) sighting {
	s.version = max(s.version+1, now.UnixMicro())
	if toOthers {
		s.shownVersion = max(s.shownVersion+1, now.UnixMicro())
	}
	return s
}

// own is what the person's own devices see.
func (s sighting) own() *realtimev1.Presence {
	return s.toPresence(s.online, s.lastSeen, s.version)
}

// shown is what others see.
func (s sighting) shown() *realtimev1.Presence {
	return s.toPresence(s.online && !s.invisible, s.shownSeen, s.shownVersion)
}

func (s sighting) toPresence(online bool, seen time.Time, version int64) *realtimev1.Presence {
	p := &realtimev1.Presence{
		UserId: s.user.String(), State: realtimev1.PresenceState_PRESENCE_STATE_OFFLINE, Version: version,
	}
	if !online {
		if !never(seen) {
			p.LastSeenAt = timestamppb.New(seen)
		}
		return p
	}
	p.State = realtimev1.PresenceState_PRESENCE_STATE_ONLINE
	for kind, count := range s.devices {
		if count > 0 {
			p.Devices = append(p.Devices, &realtimev1.DeviceCount{Kind: realtimev1.DeviceKind(kind), Count: uint32(count)})
		}
	}
	return p
}

// lastVersion is that of what is told about somebody who was deleted: nothing comes
// after it. So it does not matter what was told before, nor how often it is told.
const lastVersion = math.MaxInt64

// lastPresence is what is told about somebody who was deleted.
func lastPresence(user uuid.UUID) *realtimev1.Presence {
	return &realtimev1.Presence{
		UserId: user.String(), State: realtimev1.PresenceState_PRESENCE_STATE_OFFLINE, Version: lastVersion,
	}
}

// lastSignal tells gateways of it.
func lastSignal(user uuid.UUID) *realtimev1.PresenceSignal {
	return &realtimev1.PresenceSignal{UserId: user[:], Shown: lastPresence(user), Own: lastPresence(user)}
}

// signal tells gateways what changed from before, or everything there is.
func (s sighting) signal(before sighting, everything bool) *realtimev1.PresenceSignal {
	signal := &realtimev1.PresenceSignal{UserId: s.user[:], Own: s.own()}
	if everything || s.shownVersion != before.shownVersion {
		signal.Shown = s.shown()
	}
	return signal
}

func toSighting(r db.Presence) sighting {
	s := sighting{
		user: r.UserID, online: r.Online, lastSeen: r.LastSeenAt, invisible: r.Invisible, shownSeen: r.ShownSeenAt,
		version: r.Version, shownVersion: r.ShownVersion,
	}
	copy(s.devices[:], r.Devices)
	return s
}
