package user

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/outbox"
	"github.com/parleychat/parley/pkg/portability"
	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
	"github.com/parleychat/parley/services/user/internal/db"
)

var _ userv1connect.PresenceServiceHandler = (*sightings)(nil)

const (
	// rollTrust is for how long after the last look at the roll what was told last
	// still counts.
	rollTrust = 5 * time.Second
	// tellAgain is after what time a change of settings is told a second time, in
	// case the first was not to be.
	tellAgain = 5 * time.Second
	// doubtTimeout is how long a caller waits for a Redis that is away.
	doubtTimeout = 500 * time.Millisecond
)

// Visibility says whose presence somebody may see. An error means that it is not
// known: then nobody is seen.
type Visibility interface {
	// VisibleBatch answers for each of people, in their order.
	VisibleBatch(ctx context.Context, viewer uuid.UUID, people []uuid.UUID) ([]bool, error)
}

// openVisibility lets everybody see everybody, but for those who are invisible:
// what a deployment without the privacy service does. It is the answer "no rule
// forbids it", and not a fallback for an outage.
type openVisibility struct{}

func (openVisibility) VisibleBatch(_ context.Context, _ uuid.UUID, people []uuid.UUID) ([]bool, error) {
	visible := make([]bool, len(people))
	for i := range visible {
		visible[i] = true
	}
	return visible, nil
}

// sightings implements userv1connect.PresenceServiceHandler: what was told about
// whom last.
type sightings struct {
	pool       *pgxpool.Pool
	clock      clock.Clock
	log        *slog.Logger
	conn       *nats.Conn
	roster     *presence.Roster // nil without Redis: nothing is known
	outbox     *outbox.Outbox
	visibility Visibility
	pace       *pace
	// looked is when the shards of the roll were last read, in nanoseconds of the
	// system; 0 if one never was.
	looked [presence.Shards]atomic.Int64
}

// known says whether it is known if somebody is connected.
func (s *sightings) known(user uuid.UUID) bool {
	at := s.looked[presence.ShardOf(user)].Load()
	return at != 0 && time.Since(time.Unix(0, at)) < rollTrust //nolint:forbidigo // see judge.tell
}

// BatchGetPresence implements the RPC.
func (s *sightings) BatchGetPresence(ctx context.Context, req *userv1.BatchGetPresenceRequest) (*userv1.BatchGetPresenceResponse, error) {
	viewer := identity.From(ctx).UserID
	people := make([]uuid.UUID, 0, len(req.GetUserIds()))
	for _, raw := range req.GetUserIds() {
		id, err := uuid.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("parse an id that was validated: %w", err)
		}
		people = append(people, id)
	}
	if err := s.pace.look(ctx, len(people)); err != nil {
		return nil, err
	}
	slices.SortFunc(people, compareIDs)
	people, err := s.visibleTo(ctx, viewer, slices.Compact(people))
	if err != nil {
		return nil, err
	}
	rows, err := db.New(s.pool).PresenceByID(ctx, people)
	if err != nil {
		return nil, fmt.Errorf("select presence: %w", err)
	}
	told := make(map[uuid.UUID]sighting, len(rows))
	for _, row := range rows {
		told[row.UserID] = toSighting(row)
	}
	deleted, err := s.deleted(ctx, people, told)
	if err != nil {
		return nil, err
	}
	res := &userv1.BatchGetPresenceResponse{}
	for _, id := range people {
		seen := told[id] // nobody yet: offline, never seen
		seen.user = id
		p := seen.shown()
		switch {
		case deleted[id]:
			p = lastPresence(id)
		case id == viewer:
			p = seen.own()
		}
		if !deleted[id] && !s.known(id) {
			p.State, p.Devices, p.LastSeenAt = realtimev1.PresenceState_PRESENCE_STATE_UNSPECIFIED, nil, nil
		}
		res.Presences = append(res.Presences, p)
	}
	return res, nil
}

// deleted finds out which of those of whom nothing was told are nobody any more.
func (s *sightings) deleted(ctx context.Context, people []uuid.UUID, told map[uuid.UUID]sighting) (map[uuid.UUID]bool, error) {
	var rest []uuid.UUID
	for _, id := range people {
		if _, ok := told[id]; !ok {
			rest = append(rest, id)
		}
	}
	if len(rest) == 0 {
		return nil, nil //nolint:nilnil // a map without anybody
	}
	gone, err := db.New(s.pool).ProfilesDeleted(ctx, rest)
	if err != nil {
		return nil, fmt.Errorf("select who was deleted: %w", err)
	}
	deleted := make(map[uuid.UUID]bool, len(gone))
	for _, id := range gone {
		deleted[id] = true
	}
	return deleted, nil
}

// visibleTo leaves those whom the viewer may see: everything that shows somebody's
// presence asks here. One always sees oneself.
func (s *sightings) visibleTo(ctx context.Context, viewer uuid.UUID, people []uuid.UUID) ([]uuid.UUID, error) {
	visible, err := s.visibility.VisibleBatch(ctx, viewer, people)
	if err != nil || len(visible) != len(people) {
		s.log.WarnContext(ctx, "whose presence may be seen is not known", "error", err)
		return nil, rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "whom you may see is not known at the moment")
	}
	var out []uuid.UUID
	for i, id := range people {
		if visible[i] || id == viewer {
			out = append(out, id)
		}
	}
	return out, nil
}

// GetPresenceSettings implements the RPC.
func (s *sightings) GetPresenceSettings(ctx context.Context, _ *userv1.GetPresenceSettingsRequest) (*userv1.GetPresenceSettingsResponse, error) {
	rows, err := db.New(s.pool).PresenceByID(ctx, []uuid.UUID{identity.From(ctx).UserID})
	if err != nil {
		return nil, fmt.Errorf("select presence: %w", err)
	}
	settings := &userv1.PresenceSettings{Invisible: len(rows) > 0 && rows[0].Invisible}
	return &userv1.GetPresenceSettingsResponse{Settings: settings}, nil
}

// UpdatePresenceSettings implements the RPC.
//
// Before the commit the person is made due, so that what is committed is told a
// little later in any case: a process that dies between the commit and the signal
// leaves nobody visible who does not want to be. If that cannot be (Redis is away)
// and the signal fails too, the caller hears of it and tries again.
func (s *sightings) UpdatePresenceSettings(ctx context.Context, req *userv1.UpdatePresenceSettingsRequest) (*userv1.UpdatePresenceSettingsResponse, error) {
	if err := s.pace.update(ctx); err != nil {
		return nil, err
	}
	person := identity.From(ctx).UserID
	now := s.clock.Now()
	doubted := s.doubt(ctx, now.Add(tellAgain), person)
	next, err := s.hide(ctx, person, req.GetSettings().GetInvisible(), now)
	if err != nil {
		return nil, err
	}
	if next != nil {
		// Also when nothing changed: the caller may be repeating what was not told.
		told := presence.Publish(ctx, s.conn, []*realtimev1.PresenceSignal{next.signal(sighting{}, true)})
		if told == nil {
			told = presence.PublishRechecks(ctx, s.conn, presence.Pair{User: person})
		}
		if told != nil {
			s.log.WarnContext(ctx, "a change of visibility was not told at once", "error", told)
		}
		if told != nil && doubted != nil {
			return nil, rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "stored, but others could not be told yet")
		}
	}
	return &userv1.UpdatePresenceSettingsResponse{Settings: req.GetSettings()}, nil
}

func (s *sightings) doubt(ctx context.Context, at time.Time, person uuid.UUID) error {
	if s.roster == nil {
		return errNoRoll
	}
	ctx, cancel := context.WithTimeout(ctx, doubtTimeout)
	defer cancel()
	return s.roster.Doubt(ctx, at, person)
}

// hide stores what the person wants; nil if there is no such person any more.
func (s *sightings) hide(ctx context.Context, person uuid.UUID, invisible bool, now time.Time) (*sighting, error) {
	var next *sighting
	err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		queries := db.New(tx)
		found, err := lockSightings(ctx, queries, []uuid.UUID{person})
		if err != nil || len(found) == 0 {
			return err
		}
		before := found[person]
		changed := before.hidden(invisible, now)
		next = &changed
		if changed.version == before.version {
			return nil
		}
		err = queries.PresenceHide(ctx, db.PresenceHideParams{
			UserID: person, Invisible: changed.invisible, ShownSeenAt: changed.shownSeen,
			Version: changed.version, ShownVersion: changed.shownVersion,
		})
		if err != nil {
			return fmt.Errorf("store the visibility: %w", err)
		}
		return emit(presenceSettingsChanged(changed))
	})
	return next, err
}

// lockSightings reads people for a change, and makes the rows of those who have
// none yet. Who was deleted is left out.
func lockSightings(ctx context.Context, queries *db.Queries, people []uuid.UUID) (map[uuid.UUID]sighting, error) {
	rows, err := queries.PresenceLock(ctx, people)
	if err == nil && len(rows) < len(people) {
		if err = queries.PresenceMake(ctx, people); err == nil {
			rows, err = queries.PresenceLock(ctx, people)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock presence: %w", err)
	}
	found := make(map[uuid.UUID]sighting, len(rows))
	for _, row := range rows {
		found[row.UserID] = toSighting(row)
	}
	return found, nil
}

type ownPresence struct {
	Invisible       bool           `json:"invisible"`
	Online          bool           `json:"online"`
	Devices         map[string]int `json:"devices,omitempty"`
	LastSeenAt      *time.Time     `json:"last_seen_at,omitempty"`
	ShownLastSeenAt *time.Time     `json:"shown_last_seen_at,omitempty"`
}

// exportPresence adds what is stored about when a person was there.
func exportPresence(ctx context.Context, pool *pgxpool.Pool, id uuid.UUID, files *portability.Files) error {
	rows, err := db.New(pool).PresenceByID(ctx, []uuid.UUID{id})
	if err != nil {
		return fmt.Errorf("select presence: %w", err)
	}
	if len(rows) == 0 {
		return nil
	}
	stored := toSighting(rows[0])
	own := ownPresence{
		Invisible: stored.invisible, Online: stored.online, Devices: map[string]int{},
		LastSeenAt: seenAt(stored.lastSeen), ShownLastSeenAt: seenAt(stored.shownSeen),
	}
	for kind, count := range stored.devices {
		if count > 0 {
			name := strings.TrimPrefix(realtimev1.DeviceKind(kind).String(), "DEVICE_KIND_")
			own.Devices[strings.ToLower(name)] = int(count)
		}
	}
	return files.JSON("presence.json", own)
}

// seenAt leaves out that somebody never was.
func seenAt(t time.Time) *time.Time {
	if never(t) {
		return nil
	}
	t = t.UTC()
	return &t
}
