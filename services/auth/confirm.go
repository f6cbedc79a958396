package auth

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var errSessionEnded = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED, "the session was ended")

// auditConfirmed: the owner of a session proved by the password to be it.
const auditConfirmed = "session.confirmed"

// Reauthenticate implements the RPC.
func (s *Service) Reauthenticate(ctx context.Context, req *authv1.ReauthenticateRequest) (*authv1.ReauthenticateResponse, error) {
	caller := identity.From(ctx)
	checked, err := s.confirmPassword(ctx, auditConfirmed, caller.UserID, req.GetPassword())
	if err != nil {
		return nil, err
	}
	now := s.clock.Now()
	err = s.act(ctx, &auditEntry{action: auditConfirmed, account: caller.UserID}, func(queries *db.Queries, _ emitFunc) error {
		// A password that was changed meanwhile proves nothing.
		if _, err := s.lockChecked(ctx, queries, caller, checked); err != nil {
			return err
		}
		confirmed, err := queries.SessionConfirm(ctx, db.SessionConfirmParams{ID: caller.SessionID, AccountID: caller.UserID, ConfirmedAt: now})
		if err != nil {
			return fmt.Errorf("confirm session: %w", err)
		}
		if confirmed == 0 {
			return errSessionEnded
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &authv1.ReauthenticateResponse{ConfirmedAt: timestamppb.New(now)}, nil
}

// CheckConfirmation implements the RPC.
func (s *Service) CheckConfirmation(ctx context.Context, req *authv1.CheckConfirmationRequest) (*authv1.CheckConfirmationResponse, error) {
	account, err := uuid.Parse(req.GetUserId())
	if err != nil {
		return nil, fmt.Errorf("parse an id that was validated: %w", err)
	}
	session, err := uuid.Parse(req.GetSessionId())
	if err != nil {
		return nil, fmt.Errorf("parse an id that was validated: %w", err)
	}
	at, err := db.New(s.pool).SessionConfirmed(ctx, db.SessionConfirmedParams{ID: session, AccountID: account, Now: s.clock.Now()})
	if errors.Is(err, pgx.ErrNoRows) {
		return &authv1.CheckConfirmationResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("select confirmation: %w", err)
	}
	return &authv1.CheckConfirmationResponse{ConfirmedAt: timestamppb.New(at)}, nil
}
