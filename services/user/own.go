package user

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

var errVersionConflict = rpc.Error(connect.CodeAborted, errorv1.Reason_REASON_VERSION_CONFLICT,
	"the profile was changed meanwhile: read it again")

// details are what may change in a profile.
type details struct {
	username, displayName, bio, locale string
	discoverable                       bool
	accountVersion                     int64
	version                            int64
}

// GetProfile implements the RPC.
func (s *Service) GetProfile(ctx context.Context, _ *userv1.GetProfileRequest) (*userv1.GetProfileResponse, error) {
	row, err := s.own(ctx, identity.From(ctx).UserID)
	if err != nil {
		return nil, err
	}
	return &userv1.GetProfileResponse{Profile: profileToProto(db.ProfileForUpdateRow(row))}, nil
}

// own reads somebody's own profile, which is asked of auth if it is not there yet.
func (s *Service) own(ctx context.Context, id uuid.UUID) (db.ProfileOwnRow, error) {
	row, err := db.New(s.pool).ProfileOwn(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := s.lookUp(ctx, []uuid.UUID{id}); err != nil {
			return row, err
		}
		row, err = db.New(s.pool).ProfileOwn(ctx, id)
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && row.Deleted:
		return row, errUserNotFound
	case err != nil:
		return row, fmt.Errorf("select own profile: %w", err)
	}
	return row, nil
}

// UpdateProfile implements the RPC.
func (s *Service) UpdateProfile(ctx context.Context, req *userv1.UpdateProfileRequest) (*userv1.UpdateProfileResponse, error) {
	id := identity.From(ctx).UserID
	change, err := changeOf(req)
	if err != nil {
		return nil, err
	}
	if err := s.pace.update(ctx); err != nil {
		return nil, err
	}
	if _, err := s.own(ctx, id); err != nil {
		return nil, err
	}
	var row db.ProfileForUpdateRow
	err = s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		if row, err = profileForUpdate(ctx, tx, id); err != nil {
			return err
		}
		if row.Version != req.GetVersion() {
			return errVersionConflict
		}
		row, err = apply(ctx, tx, emit, row, change)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.changed(ctx, id)
	return &userv1.UpdateProfileResponse{Profile: profileToProto(row)}, nil
}

// changeOf checks the fields that the mask names and returns what they change.
func changeOf(req *userv1.UpdateProfileRequest) (func(*details), error) {
	named := func(field string) bool { return slices.Contains(req.GetUpdateMask().GetPaths(), field) }
	var name, bio, locale string
	var err error
	if named("display_name") {
		if name, err = cleanDisplayName(req.GetDisplayName()); err != nil {
			return nil, err
		}
	}
	if named("bio") {
		if bio, err = cleanBio(req.GetBio()); err != nil {
			return nil, err
		}
	}
	if named("locale") {
		if locale, err = cleanLocale(req.GetLocale()); err != nil {
			return nil, err
		}
	}
	return func(d *details) {
		if named("display_name") {
			d.displayName = name
		}
		if named("bio") {
			d.bio = bio
		}
		if named("locale") {
			d.locale = locale
		}
		if named("discoverable") {
			d.discoverable = req.GetDiscoverable()
		}
	}, nil
}

// rename gives a profile the user name that auth tells, unless it knows a newer one. A display name that was
// the old user name goes with it: the person never chose another.
func rename(ctx context.Context, tx pgx.Tx, emit emitFunc, id uuid.UUID, username string, accountVersion int64) error {
	row, err := profileForUpdate(ctx, tx, id)
	if errors.Is(err, errUserNotFound) || (err == nil && row.AccountVersion >= accountVersion) {
		return nil // deleted meanwhile, or older than what is known
	}
	if err != nil {
		return err
	}
	_, err = apply(ctx, tx, emit, row, func(d *details) {
		if d.displayName == d.username {
			d.displayName = username
		}
		d.username, d.accountVersion = username, accountVersion
	})
	return err
}

// profileForUpdate locks a profile. Who was deleted has none.
func profileForUpdate(ctx context.Context, tx pgx.Tx, id uuid.UUID) (db.ProfileForUpdateRow, error) {
	row, err := db.New(tx).ProfileForUpdate(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && row.Deleted:
		return row, errUserNotFound
	case err != nil:
		return row, fmt.Errorf("lock profile: %w", err)
	}
	return row, nil
}

// apply changes a locked profile and tells it; without a difference nothing happens.
func apply(ctx context.Context, tx pgx.Tx, emit emitFunc, row db.ProfileForUpdateRow, change func(*details)) (db.ProfileForUpdateRow, error) {
	old := details{
		username: row.Username, displayName: row.DisplayName, bio: row.Bio, locale: row.Locale,
		discoverable: row.Discoverable, accountVersion: row.AccountVersion, version: row.Version,
	}
	now := old
	if change(&now); now == old {
		return row, nil
	}
	now.version++
	err := db.New(tx).ProfileUpdate(ctx, db.ProfileUpdateParams{
		ID: row.ID, Username: now.username, DisplayName: now.displayName, Bio: now.bio, Locale: now.locale,
		Discoverable: now.discoverable, Search: searchText(now.username, now.displayName),
		Version: now.version, AccountVersion: now.accountVersion,
	})
	if err != nil {
		return row, fmt.Errorf("update profile: %w", err)
	}
	row.Username, row.DisplayName, row.Bio, row.Locale = now.username, now.displayName, now.bio, now.locale
	row.Discoverable, row.AccountVersion, row.Version = now.discoverable, now.accountVersion, now.version
	return row, emit(userUpdated(row.ID, now))
}

// indexBatch bounds what one round of indexNames reads.
const indexBatch = 500

// indexNames gives profiles that the release before has written the form in which they are searched. Cut off,
// it goes on with the next run.
func (s *Service) indexNames(ctx context.Context) error {
	queries := db.New(s.pool)
	for {
		rows, err := queries.ProfileUnindexed(ctx, indexBatch)
		if err != nil {
			return fmt.Errorf("select names to index: %w", err)
		}
		for _, row := range rows {
			err := queries.ProfileIndex(ctx, db.ProfileIndexParams{
				ID: row.ID, Username: row.Username, DisplayName: row.DisplayName, Search: searchText(row.Username, row.DisplayName),
			})
			if err != nil {
				return fmt.Errorf("index a name: %w", err)
			}
		}
		if len(rows) < indexBatch {
			return nil
		}
	}
}

func profileToProto(row db.ProfileForUpdateRow) *userv1.Profile {
	return &userv1.Profile{
		User: &userv1.User{
			Id: row.ID.String(), Username: row.Username, DisplayName: row.DisplayName, Bio: row.Bio,
			CreatedAt: timestamppb.New(row.CreatedAt), Version: row.Version,
		},
		Locale: row.Locale, Discoverable: row.Discoverable,
	}
}
