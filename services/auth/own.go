package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/mail"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// ownAccount reads the caller's account. ACCOUNT_NOT_FOUND if it is gone: its token lives on for a while.
func (s *Service) ownAccount(ctx context.Context, id uuid.UUID) (db.AccountOwnRow, error) {
	row, err := db.New(s.pool).AccountOwn(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return row, errAccountNotFound
	}
	if err != nil {
		return row, fmt.Errorf("select account: %w", err)
	}
	return row, nil
}

// GetOwnAccount implements the RPC.
func (s *Service) GetOwnAccount(ctx context.Context, _ *authv1.GetOwnAccountRequest) (*authv1.GetOwnAccountResponse, error) {
	me := identity.From(ctx).UserID
	row, err := s.ownAccount(ctx, me)
	if err != nil {
		return nil, err
	}
	role, err := roleToProto(row.Role)
	if err != nil {
		return nil, err
	}
	return &authv1.GetOwnAccountResponse{
		UserId: me.String(), Username: row.Username, Email: row.Email, EmailVerifiedAt: timeToProto(row.EmailVerifiedAt),
		Role: role, CreatedAt: timestamppb.New(row.CreatedAt), PasswordChangedAt: timeToProto(row.PasswordChangedAt),
		SecondFactor: row.SecondFactor,
	}, nil
}

// ChangePassword implements the RPC.
func (s *Service) ChangePassword(ctx context.Context, req *authv1.ChangePasswordRequest) (*authv1.ChangePasswordResponse, error) {
	caller := identity.From(ctx)
	checked, err := s.confirmPassword(ctx, auditPasswordChanged, caller.UserID, req.GetCurrentPassword())
	if err != nil {
		return nil, err
	}
	if err := s.passwords.refuseWeak(req.GetNewPassword(), checked.Username, checked.Email); err != nil {
		return nil, err
	}
	hash, err := s.passwords.hash(ctx, req.GetNewPassword())
	if err != nil {
		return nil, err
	}
	res := &authv1.ChangePasswordResponse{}
	// It ends a theft and needs the password: no thief's doings may stand before it.
	entry := auditEntry{action: auditPasswordChanged, account: caller.UserID, always: true}
	err = s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) error {
		row, err := s.lockChecked(ctx, queries, caller, checked)
		if err != nil {
			return err
		}
		res.RevokedSessions, err = s.setPassword(ctx, queries, recipient{caller.UserID, row.Username, row.Email}, hash, caller.SessionID, emit)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return res, nil
}

// setPassword changes the password of an account whose lock the caller holds: every session but one ends, so
// does what waits for a second factor or a code, and a mail tells the person.
func (s *Service) setPassword(ctx context.Context, queries *db.Queries, of recipient, hash string, except uuid.UUID, emit emitFunc) (int32, error) {
	err := queries.AccountSetPassword(ctx, db.AccountSetPasswordParams{PasswordHash: hash, ChangedAt: s.clock.Now(), ID: of.id})
	if err != nil {
		return 0, fmt.Errorf("update password: %w", err)
	}
	if err := queries.CodesDrop(ctx, of.id); err != nil {
		return 0, fmt.Errorf("drop codes: %w", err)
	}
	if err := s.notice(ctx, queries, of, mail.PasswordChanged, s.callOrigin(ctx)); err != nil {
		return 0, err
	}
	return s.revokeAll(ctx, queries, of.id, except, emit)
}

func roleToProto(name string) (authv1.Role, error) {
	role, err := identity.ParseRole(name)
	if err != nil {
		return authv1.Role_ROLE_UNSPECIFIED, fmt.Errorf("stored role: %w", err)
	}
	return protoRoles[role], nil
}

var protoRoles = map[identity.Role]authv1.Role{
	identity.RoleUser:      authv1.Role_ROLE_USER,
	identity.RoleModerator: authv1.Role_ROLE_MODERATOR,
	identity.RoleAdmin:     authv1.Role_ROLE_ADMIN,
}

// timeToProto leaves an absent time absent.
func timeToProto(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}
