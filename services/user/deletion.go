package user

import (
	"context"
	"errors"
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

var (
	errConfirm = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED,
		"log in or confirm your password first")
	errConfirmUnknown = rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"it cannot be checked at the moment who you are")
	errServicesUnknown = rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"this deployment does not say which services it has")
)

// confirmed says that the owner of the session has lately proved to be it; an outage is neither yes nor no.
func (s *Service) confirmed(ctx context.Context) error {
	caller := identity.From(ctx)
	res, err := s.confirmations.CheckConfirmation(ctx, &authv1.CheckConfirmationRequest{
		UserId: caller.UserID.String(), SessionId: caller.SessionID.String(),
	})
	if err != nil {
		s.log.WarnContext(ctx, "auth cannot be asked for a confirmation", "error", err)
		return errConfirmUnknown
	}
	if res.GetConfirmedAt() == nil || s.clock.Now().Sub(res.GetConfirmedAt().AsTime()) > s.confirmationAge {
		return errConfirm
	}
	return nil
}

// RequestDeletion implements the RPC.
func (s *Service) RequestDeletion(ctx context.Context, _ *userv1.RequestDeletionRequest) (*userv1.RequestDeletionResponse, error) {
	if len(s.services) == 0 {
		return nil, errServicesUnknown
	}
	id := identity.From(ctx).UserID
	// Whoever is to be deleted has a profile: its last version is that of user.deleted.
	if _, err := s.own(ctx, id); err != nil {
		return nil, err
	}
	if err := s.confirmed(ctx); err != nil {
		return nil, err
	}
	request, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make a request's id: %w", err)
	}
	now := s.clock.Now()
	due := now.Add(s.deletionGrace)
	err = s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		created, err := db.New(tx).DeletionCreate(ctx, db.DeletionCreateParams{
			UserID: id, RequestID: request, RequestedAt: now, DueAt: due,
		})
		if err != nil {
			return fmt.Errorf("insert deletion: %w", err)
		}
		if created == 0 {
			return nil
		}
		return emit(deletionRequested(request, id, now, due))
	})
	if err != nil {
		return nil, err
	}
	deletion, err := s.deletion(ctx, id)
	if err != nil {
		return nil, err
	}
	return &userv1.RequestDeletionResponse{Deletion: deletion}, nil
}

// CancelDeletion implements the RPC. The row's lock decides between it and the job that carries deletions out.
func (s *Service) CancelDeletion(ctx context.Context, _ *userv1.CancelDeletionRequest) (*userv1.CancelDeletionResponse, error) {
	id := identity.From(ctx).UserID
	err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		request, err := db.New(tx).DeletionCancel(ctx, id)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("delete deletion: %w", err)
		}
		return emit(deletionCancelled(request, id, s.clock.Now()))
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.deletion(ctx, id); err != nil {
		return nil, err
	}
	return &userv1.CancelDeletionResponse{}, nil
}

// GetDeletion implements the RPC.
func (s *Service) GetDeletion(ctx context.Context, _ *userv1.GetDeletionRequest) (*userv1.GetDeletionResponse, error) {
	deletion, err := s.deletion(ctx, identity.From(ctx).UserID)
	if err != nil {
		return nil, err
	}
	return &userv1.GetDeletionResponse{Deletion: deletion}, nil
}

// deletion reads a request that waits, nil for none. One that was carried out leaves nobody to tell it to.
func (s *Service) deletion(ctx context.Context, id uuid.UUID) (*userv1.Deletion, error) {
	row, err := db.New(s.pool).DeletionByUser(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil //nolint:nilnil // nothing was requested
	case err != nil:
		return nil, fmt.Errorf("select deletion: %w", err)
	case row.DeletedAt != nil:
		return nil, errUserNotFound
	}
	return &userv1.Deletion{RequestedAt: timestamppb.New(row.RequestedAt), DueAt: timestamppb.New(row.DueAt)}, nil
}

// finishDeletions carries out what is due, one person per transaction: the profile turns into one of a deleted
// person, the ledger is opened and user.deleted is emitted, or nothing of it. A crash before the commit leaves
// the request as it was; after it, the request is not due any more. The row's lock keeps two leaders and a
// cancellation apart.
func (s *Service) finishDeletions(ctx context.Context) error {
	for {
		var id uuid.UUID
		found := false
		err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) (err error) {
			id, err = db.New(tx).DeletionDue(ctx, s.clock.Now())
			if found = err == nil; errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("select a deletion that is due: %w", err)
			}
			return s.finish(ctx, tx, emit, id, s.clock.Now())
		})
		if err != nil || !found {
			return err
		}
		s.changed(ctx, id)
	}
}

// errNobodyToTell keeps a person from being deleted by halves.
var errNobodyToTell = errors.New("a deletion is due and PARLEY_USER_SERVICES is not set")

func (s *Service) finish(ctx context.Context, tx pgx.Tx, emit emitFunc, id uuid.UUID, now time.Time) error {
	if len(s.services) == 0 {
		return errNobodyToTell
	}
	queries := db.New(tx)
	version, err := queries.ProfileDelete(ctx, db.ProfileDeleteParams{ID: id, DeletedAt: now})
	if err != nil {
		return fmt.Errorf("delete profile: %w", err)
	}
	if err := queries.DeletionDone(ctx, db.DeletionDoneParams{UserID: id, DeletedAt: now}); err != nil {
		return fmt.Errorf("note the deletion: %w", err)
	}
	err = queries.ErasureOpen(ctx, db.ErasureOpenParams{UserID: id, Services: s.services, RequestedAt: now})
	if err != nil {
		return fmt.Errorf("open the ledger: %w", err)
	}
	return emit(userDeleted(id, version, now))
}
