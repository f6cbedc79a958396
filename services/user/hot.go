package user

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/limit"
	"github.com/parleychat/parley/pkg/service"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

// profileTTL is the longest that a profile is cached. Changes invalidate it; this
// bounds the memory, and what a Redis can do that forgets an invalidation.
const profileTTL = 10 * time.Minute

// setupHot makes what stands in Redis between the service and its tables: the
// profiles that people see of each other, and the counts of searches.
func (s *Service) setupHot(rt *service.Runtime, searchesPerMinute int) error {
	var err error
	s.profiles, err = cache.New(rt.Redis, rt.Log, cache.Options[uuid.UUID, *userv1.User]{
		Name: "user.profile", TTL: profileTTL, Key: uuid.UUID.String,
		Encode: cache.EncodeProto[*userv1.User], Decode: cache.DecodeProto[userv1.User], Load: s.loadProfiles,
	})
	if err != nil {
		return err
	}
	s.searches, err = limit.New(rt.Redis, rt.Clock, rt.Log, limit.Options{
		Name: "user.search", Burst: searchesPerMinute, Every: time.Minute / time.Duration(searchesPerMinute), Away: limit.Local,
	})
	if err != nil {
		return err
	}
	rt.Listen(
		event.On("user", typeUserUpdated, event.ByVersion, s.onOwnUpdated).Named("hot."+typeUserUpdated),
		event.On("user", typeUserDeleted, event.ByVersion, s.onOwnDeleted).Named("hot."+typeUserDeleted),
	)
	return nil
}

// loadProfiles reads profiles for the cache.
func (s *Service) loadProfiles(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]*userv1.User, error) {
	rows, err := db.New(s.pool).ProfilesByID(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("select profiles: %w", err)
	}
	found := make(map[uuid.UUID]*userv1.User, len(rows))
	for _, row := range rows {
		found[row.ID] = toProto(row)
	}
	return found, nil
}

// changed has a profile read anew after a change that was committed: whoever
// changed it sees that at once. If Redis is away, or this process dies before, the
// listeners do it.
func (s *Service) changed(ctx context.Context, id uuid.UUID) {
	// The caller may have gone; the change stands.
	if err := s.profiles.Invalidate(context.WithoutCancel(ctx), id); err != nil {
		s.log.WarnContext(ctx, "a changed profile may be shown as it was, until Redis is back", "error", err)
	}
}

// onOwnUpdated and onOwnDeleted make sure of it for every change, whoever made it.
func (s *Service) onOwnUpdated(ctx context.Context, _ pgx.Tx, _ *eventv1.Event, updated *userv1.UserUpdated) error {
	return s.forgetCached(ctx, updated.GetUserId())
}

func (s *Service) onOwnDeleted(ctx context.Context, _ pgx.Tx, _ *eventv1.Event, deleted *userv1.UserDeleted) error {
	return s.forgetCached(ctx, deleted.GetUserId())
}

// forgetCached needs no transaction and may be done again: it only forgets.
func (s *Service) forgetCached(ctx context.Context, raw string) error {
	id, err := uuid.Parse(raw)
	if err != nil {
		return fmt.Errorf("user id: %w", err)
	}
	// Redis being away is nobody's fault: the event waits for it.
	return event.Later(s.profiles.Invalidate(ctx, id))
}
