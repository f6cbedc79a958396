package messaging

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/rueidis"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/limit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/messaging/internal/db"
)

const (
	// typingLife is for how long "is writing" holds without being repeated.
	typingLife = 6 * time.Second
	// typingPause is the least time between two calls of one device for one
	// conversation that say the same.
	typingPause = 2 * time.Second
	// audienceLife is for how long members are remembered: so long may somebody who
	// has left a conversation hear that others write in it. maxAudiences bounds the
	// memory.
	audienceLife = 10 * time.Second
	maxAudiences = 20_000
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
	if err := s.typing.limit.Check(ctx, fmt.Sprintf("%s:%s:%t", id, caller.SessionID, req.GetTyping())); err != nil {
		return nil, err
	}
	if hidden, err := s.queries.InvisibleNow(ctx, caller.UserID); err != nil {
		return nil, fmt.Errorf("look whether the caller is invisible: %w", err)
	} else if hidden {
		return &messagingv1.SetTypingResponse{}, nil
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

// onPresenceSettingsChanged notes who is invisible: that they write would show that
// they are there. What they send, and how far they have read, is told nevertheless:
// it is in the log of the others, and they have chosen to send and to read.
func (s *Service) onPresenceSettingsChanged(
	ctx context.Context, tx pgx.Tx, ev *eventv1.Event, changed *userv1.UserPresenceSettingsChanged,
) error {
	id, err := uuid.Parse(changed.GetUserId())
	if err != nil {
		return fmt.Errorf("user id: %w", err)
	}
	err = db.New(tx).InvisibleUpsert(ctx, db.InvisibleUpsertParams{
		ID: id, Invisible: changed.GetInvisible(), Version: ev.GetKeyVersion(),
	})
	if err != nil {
		return fmt.Errorf("note who is invisible: %w", err)
	}
	return nil
}

func (p *pusher) typing(ctx context.Context, users []uuid.UUID, t *messagingv1.Typing) {
	p.push(ctx, users, &realtimev1.Push{Event: &realtimev1.Push_Typing{Typing: t}})
}

// typists keeps what SetTyping needs to be cheap: who is in a conversation. Nothing
// of it is stored, and losing it does no harm.
type typists struct {
	limit *limit.Limiter
	clock clock.Clock
	most  int // members, beyond which nobody is told

	mu        sync.Mutex
	audiences map[uuid.UUID]audience
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

func newTypists(redis rueidis.Client, c clock.Clock, log *slog.Logger, most int) (*typists, error) {
	pause, err := limit.New(redis, c, log, limit.Options{Name: "messaging.typing", Burst: 1, Every: typingPause, Away: limit.Local})
	if err != nil {
		return nil, fmt.Errorf("make the limit of typing: %w", err)
	}
	return &typists{limit: pause, clock: c, most: most, audiences: map[uuid.UUID]audience{}}, nil
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
