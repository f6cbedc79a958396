package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

const (
	typeUsernameChanged  = "account.username_changed"
	auditUsernameChanged = "username.changed"
	// usernameTries are the changes that an account may ask for in 15 minutes: each
	// tells whether a name is taken.
	usernameTries = 20
)

// usernamePolicy says how often a name changes, and how long the old one is kept for its owner.
type usernamePolicy struct {
	every time.Duration
	hold  time.Duration
}

// next is when a name may change again, the zero time for at once.
func (p usernamePolicy) next(changed *time.Time) time.Time {
	if changed == nil {
		return time.Time{}
	}
	return changed.Add(p.every)
}

func errUsernameTooSoon(wait time.Duration) error {
	return rpc.WithRetryAfter(rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_USERNAME_CHANGE_TOO_SOON,
		"the user name was changed lately"), wait)
}

// ChangeUsername implements the RPC.
func (s *Service) ChangeUsername(ctx context.Context, req *authv1.ChangeUsernameRequest) (*authv1.ChangeUsernameResponse, error) {
	id := identity.From(ctx).UserID
	tries := subject{key: "username:" + id.String(), limit: usernameTries}
	if err := s.attempts.count(ctx, tries); err != nil {
		return nil, err
	}
	res := &authv1.ChangeUsernameResponse{Username: req.GetUsername()}
	err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		queries := db.New(tx)
		row, err := queries.AccountForUsername(ctx, id)
		if errors.Is(err, pgx.ErrNoRows) {
			return errAccountNotFound
		}
		if err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		now := s.clock.Now()
		if row.Username != req.GetUsername() {
			if wait := s.usernames.next(row.UsernameChangedAt).Sub(now); wait > 0 {
				return errUsernameTooSoon(wait)
			}
			if err := s.changeUsername(ctx, queries, emit, id, row, req.GetUsername(), now); err != nil {
				return err
			}
			row.UsernameChangedAt = &now
		}
		if next := s.usernames.next(row.UsernameChangedAt); next.After(now) {
			res.NextChangeAt = timestamppb.New(next)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// changeUsername gives a locked account another name and keeps the old one for it. The order matters: the new
// name is taken first, which waits for whoever is just giving it away, and only then is it asked who holds it.
// Two who want each other's names at the same moment stop each other: both are told that the name is taken.
func (s *Service) changeUsername(
	ctx context.Context, queries *db.Queries, emit emitFunc, id uuid.UUID, row db.AccountForUsernameRow, name string, now time.Time,
) error {
	key := nameKey(name)
	version, err := queries.AccountSetUsername(ctx, db.AccountSetUsernameParams{
		ID: id, Username: name, UsernameKey: key, ChangedAt: now,
	})
	if postgres.IsUniqueViolation(err, "account_username_key") || postgres.IsRetryable(err) {
		return errUsernameTaken
	}
	if err != nil {
		return fmt.Errorf("update user name: %w", err)
	}
	if key != row.UsernameKey {
		if err := s.swapHolds(ctx, queries, id, row, key, now); err != nil {
			return err
		}
	}
	if err := s.audit(ctx, queries, auditEntry{action: auditUsernameChanged, account: id}, errorv1.Reason_REASON_UNSPECIFIED); err != nil {
		return err
	}
	return emit(usernameChanged(id, version, name, row))
}

// swapHolds keeps the old name, and lets go of the new one if it was kept for this account.
func (s *Service) swapHolds(ctx context.Context, queries *db.Queries, id uuid.UUID, row db.AccountForUsernameRow, key string, now time.Time) error {
	held, err := queries.UsernameHeldByOther(ctx, db.UsernameHeldByOtherParams{UsernameKey: key, AccountID: id})
	if err != nil {
		return fmt.Errorf("look for a hold: %w", err)
	}
	if held {
		return errUsernameTaken
	}
	if err := queries.UsernameUnhold(ctx, db.UsernameUnholdParams{UsernameKey: key, AccountID: id}); err != nil {
		return fmt.Errorf("delete hold: %w", err)
	}
	err = queries.UsernameHold(ctx, db.UsernameHoldParams{
		UsernameKey: row.UsernameKey, AccountID: id, Username: row.Username, HeldUntil: now.Add(s.usernames.hold),
	})
	if err != nil {
		return fmt.Errorf("insert hold: %w", err)
	}
	return nil
}

// usernameChanged tells the name of an account, with what a profile begins with.
func usernameChanged(id uuid.UUID, version int64, name string, row db.AccountForUsernameRow) *eventv1.Event {
	return event.New(typeUsernameChanged, id.String(), version, &authv1.AccountUsernameChanged{
		AccountId: id.String(), Username: name, DisplayName: row.DisplayName, RegisteredAt: timestamppb.New(row.CreatedAt),
	})
}

// releaseUsernames gives the names back whose time is over.
func (s *Service) releaseUsernames(ctx context.Context) error {
	return prune(func() (int64, error) {
		return db.New(s.pool).UsernameHoldPrune(ctx, db.UsernameHoldPruneParams{Now: s.clock.Now(), Batch: pruneBatch})
	})
}
