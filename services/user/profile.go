package user

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

var errUserNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND, "no such person")

// profile is a person as first heard of.
type profile struct {
	id             uuid.UUID
	username       string
	displayName    string
	accountVersion int64
	createdAt      time.Time
}

// GetUser implements the RPC.
func (s *Service) GetUser(ctx context.Context, req *userv1.GetUserRequest) (*userv1.GetUserResponse, error) {
	id := identity.From(ctx).UserID
	if req.GetUserId() != "" {
		var err error
		if id, err = uuid.Parse(req.GetUserId()); err != nil {
			return nil, fmt.Errorf("parse an id that was validated: %w", err)
		}
	}
	if err := s.pace.look(ctx, 1); err != nil {
		return nil, err
	}
	found, err := s.lookUp(ctx, []uuid.UUID{id})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errUserNotFound
	}
	return &userv1.GetUserResponse{User: found[0]}, nil
}

// BatchGetUsers implements the RPC.
func (s *Service) BatchGetUsers(ctx context.Context, req *userv1.BatchGetUsersRequest) (*userv1.BatchGetUsersResponse, error) {
	ids := make([]uuid.UUID, 0, len(req.GetUserIds()))
	for _, raw := range req.GetUserIds() {
		id, err := uuid.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("parse an id that was validated: %w", err)
		}
		ids = append(ids, id)
	}
	if err := s.pace.look(ctx, len(ids)); err != nil {
		return nil, err
	}
	found, err := s.lookUp(ctx, ids)
	if err != nil {
		return nil, err
	}
	return &userv1.BatchGetUsersResponse{Users: found}, nil
}

// lookUp finds the people that exist. Those without a profile are asked of auth, and then have one.
func (s *Service) lookUp(ctx context.Context, ids []uuid.UUID) ([]*userv1.User, error) {
	found, err := s.read(ctx, ids)
	if err != nil {
		return nil, err
	}
	missing := withoutProfile(ids, found)
	if len(missing) == 0 {
		return found, nil
	}
	if err := s.pace.stranger(ctx, len(missing)); err != nil {
		return nil, err
	}
	late, err := s.fetch(ctx, missing)
	if err != nil {
		return nil, err
	}
	return append(found, late...), nil
}

// withoutProfile lists the ids, as text, that were not found and can be accounts at all. Accounts have UUIDv7:
// made-up ids of another version do not become calls to auth.
func withoutProfile(ids []uuid.UUID, found []*userv1.User) []string {
	known := make(map[string]bool, len(ids))
	for _, u := range found {
		known[u.GetId()] = true
	}
	var missing []string
	for _, id := range ids {
		if text := id.String(); !known[text] && id.Version() == 7 {
			known[text] = true
			missing = append(missing, text)
		}
	}
	return missing
}

// read finds those who have a profile, in the order of the ids.
func (s *Service) read(ctx context.Context, ids []uuid.UUID) ([]*userv1.User, error) {
	profiles, err := s.profiles.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	return inOrder(ids, profiles), nil
}

// inOrder lists profiles in the order of the ids.
func inOrder(ids []uuid.UUID, profiles map[uuid.UUID]*userv1.User) []*userv1.User {
	found := make([]*userv1.User, 0, len(profiles))
	for _, id := range ids {
		if p, ok := profiles[id]; ok {
			found = append(found, p)
			delete(profiles, id) // asked for twice, told once
		}
	}
	return found
}

// fetch asks auth for people whose event has not arrived and makes their profiles, as the event would.
func (s *Service) fetch(ctx context.Context, missing []string) ([]*userv1.User, error) {
	res, err := s.accounts.BatchGetAccounts(ctx, &authv1.BatchGetAccountsRequest{Ids: missing})
	if err != nil {
		s.log.WarnContext(ctx, "auth cannot be asked for accounts", "count", len(missing), "error", err)
		return nil, rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE, "people cannot be looked up at the moment")
	}
	ids := make([]uuid.UUID, 0, len(res.GetAccounts()))
	for _, a := range res.GetAccounts() {
		id, err := uuid.Parse(a.GetId())
		if err != nil {
			return nil, fmt.Errorf("account id from auth: %w", err)
		}
		ids = append(ids, id)
		err = s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
			_, err := create(ctx, tx, emit, profile{
				id: id, username: a.GetUsername(), displayName: a.GetDisplayName(),
				accountVersion: a.GetVersion(), createdAt: a.GetCreatedAt().AsTime(),
			})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	// Read rather than made up from the accounts: the event may have come first after all. From the table: the cache
	// would share a load that began before the commit, and found nobody.
	profiles, err := s.loadProfiles(ctx, ids)
	if err != nil {
		return nil, err
	}
	return inOrder(ids, profiles), nil
}

// create makes a profile and emits user.created, both in tx. False: the person has one.
func create(ctx context.Context, tx pgx.Tx, emit emitFunc, p profile) (bool, error) {
	p.displayName = displayNameOr(p.displayName, p.username)
	created, err := db.New(tx).ProfileCreate(ctx, db.ProfileCreateParams{
		ID: p.id, Username: p.username, DisplayName: p.displayName, Search: searchText(p.username, p.displayName),
		Version: firstVersion, AccountVersion: p.accountVersion, CreatedAt: p.createdAt,
	})
	if err != nil {
		return false, fmt.Errorf("insert profile: %w", err)
	}
	if created == 0 {
		return false, nil
	}
	return true, emit(userCreated(p))
}

// toProto shows nothing of who was deleted but that.
func toProto(row db.ProfilesByIDRow) *userv1.User {
	if row.Deleted {
		return &userv1.User{Id: row.ID.String(), Version: row.Version, Deleted: true}
	}
	return &userv1.User{
		Id: row.ID.String(), Username: row.Username, DisplayName: row.DisplayName, Bio: row.Bio,
		CreatedAt: timestamppb.New(row.CreatedAt), Version: row.Version,
	}
}
