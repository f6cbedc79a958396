package messaging

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/redis/rueidis"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

const (
	// typingLife is for how long "is writing" holds without being repeated.
	typingLife = 6 * time.Second
	// typingPause is the least time between two calls of one device for one
	// conversation that say the same.
	typingPause = 2 * time.Second
	// typingRedis bounds the question whether that time is over. Redis being slow
	// must not hold up what is out of date in a moment.
	typingRedis = 100 * time.Millisecond
	// audienceLife is for how long members are remembered: so long may somebody who
	// has left a conversation hear that others write in it. maxAudiences bounds the
	// memory, maxPauses that of the calls of the last seconds.
	audienceLife = 10 * time.Second
	maxAudiences = 20_000
	maxPauses    = 50_000
)

// SetTyping implements the RPC.
func (s *Service) SetTyping(ctx context.Context, req *messagingv1.SetTypingRequest) (*messagingv1.SetTypingResponse, error) {
	id, err := parseID(req.GetConversationId())
	if err != nil {
		return nil, err
	}
	caller := identity.From(ctx)
	others, err := s.typing.audience(ctx, s, caller.UserID, id)
	if err != nil {
		return nil, err
	}
	if err := s.typing.pause(ctx, pauseKey{id, caller.SessionID, req.GetTyping()}); err != nil {
		return nil, err
	}
	until := s.clock.Now()
	if req.GetTyping() {
		until = until.Add(typingLife)
	}
	s.pusher.typing(ctx, others, &messagingv1.Typing{
		ConversationId: id.String(), UserId: caller.UserID.String(), Until: timestamppb.New(until),
	})
	return &messagingv1.SetTypingResponse{}, nil
}

func (p *pusher) typing(ctx context.Context, users []uuid.UUID, t *messagingv1.Typing) {
	p.push(ctx, users, &realtimev1.Push{Event: &realtimev1.Push_Typing{Typing: t}})
}

// typists keeps what SetTyping needs to be cheap: who is in a conversation, and
// who called a moment ago. Nothing of it is stored, and losing it does no harm.
type typists struct {
	redis rueidis.Client // nil: none
	clock clock.Clock
	log   *slog.Logger
	most  int // members, beyond which nobody is told

	mu        sync.Mutex
	audiences map[uuid.UUID]audience
	pauses    map[pauseKey]time.Time
}

// audience is the members of a conversation.
type audience struct {
	members []typist
	crowd   bool // more than are told
	until   time.Time
}

// typist is one of them.
type typist struct {
	user uuid.UUID
	mute bool // what this one writes would not arrive
}

// pauseKey is what is limited: a device in a conversation, starting or stopping.
type pauseKey struct {
	conversation, session uuid.UUID
	typing                bool
}

func newTypists(redis rueidis.Client, c clock.Clock, log *slog.Logger, most int) *typists {
	return &typists{
		redis: redis, clock: c, log: log, most: most,
		audiences: map[uuid.UUID]audience{}, pauses: map[pauseKey]time.Time{},
	}
}

// audience returns those who hear that the caller is writing: nobody where the
// caller may not write, or where there are too many. An error says that the caller
// is not a member.
func (t *typists) audience(ctx context.Context, s *Service, caller, conversation uuid.UUID) ([]uuid.UUID, error) {
	a, err := t.look(ctx, s.queries, conversation)
	if err != nil {
		return nil, err
	}
	own := slices.IndexFunc(a.members, func(m typist) bool { return m.user == caller })
	if own < 0 {
		// Beyond those who were read, new since then, or not a member.
		window, err := s.window(ctx, caller, conversation)
		if err != nil {
			return nil, err
		}
		if window.LeftSeq > 0 {
			return nil, errNotAMember
		}
	}
	if a.crowd || (own >= 0 && a.members[own].mute) {
		return nil, nil
	}
	others := make([]uuid.UUID, 0, len(a.members))
	for _, m := range a.members {
		if m.user != caller {
			others = append(others, m.user)
		}
	}
	return others, nil
}

// look finds the members, in memory or in the tables.
func (t *typists) look(ctx context.Context, queries *db.Queries, conversation uuid.UUID) (audience, error) {
	now := t.clock.Now()
	t.mu.Lock()
	a, known := t.audiences[conversation]
	t.mu.Unlock()
	if known && now.Before(a.until) {
		return a, nil
	}
	rows, err := queries.TypingMembers(ctx, db.TypingMembersParams{ConversationID: conversation, Most: int32(t.most) + 1})
	if err != nil {
		return audience{}, fmt.Errorf("read the members: %w", err)
	}
	a = audience{crowd: len(rows) > t.most, until: now.Add(audienceLife)}
	for _, r := range rows {
		a.members = append(a.members, typist{user: r.UserID, mute: muted(r)})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for old := range t.audiences { // any one: maps are walked in random order
		if len(t.audiences) < maxAudiences {
			break
		}
		delete(t.audiences, old)
	}
	t.audiences[conversation] = a
	return a, nil
}

// muted says that a message of this member would be refused, by what is known. It
// asks nobody: typing is worth no question.
func muted(r db.TypingMembersRow) bool {
	switch {
	case r.Closed:
		return true
	case r.DirectLow == nil || !r.Checked:
		return false
	case *r.DirectLow == r.UserID:
		return !r.MaySendLow
	default:
		return !r.MaySendHigh
	}
}

// pause takes the one call that a device has in two seconds, or returns
// RATE_LIMITED. All replicas count together, in Redis; while it is away each counts
// for itself.
func (t *typists) pause(ctx context.Context, key pauseKey) error {
	if t.repeated(key) {
		return errTypingTooOften
	}
	if t.redis == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, typingRedis)
	defer cancel()
	name := fmt.Sprintf("messaging:typing:%s:%s:%t", key.conversation, key.session, key.typing)
	err := t.redis.Do(ctx, t.redis.B().Set().Key(name).Value("1").Nx().PxMilliseconds(typingPause.Milliseconds()).Build()).Error()
	switch {
	case rueidis.IsRedisNil(err):
		return errTypingTooOften
	case err != nil:
		t.log.DebugContext(ctx, "typing is limited by this replica alone", "error", err)
	}
	return nil
}

var errTypingTooOften = rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED,
	"once in two seconds is enough"), typingPause)

// repeated notes the call and says whether this replica has had it a moment ago.
func (t *typists) repeated(key pauseKey) bool {
	now := t.clock.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if until, known := t.pauses[key]; known && now.Before(until) {
		return true
	}
	if len(t.pauses) >= maxPauses {
		for old, until := range t.pauses {
			if !now.Before(until) {
				delete(t.pauses, old)
			}
		}
	}
	for old := range t.pauses { // still full: any one
		if len(t.pauses) < maxPauses {
			break
		}
		delete(t.pauses, old)
	}
	t.pauses[key] = now.Add(typingPause)
	return false
}
