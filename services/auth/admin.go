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

var (
	errNotAdmin = rpc.Error(connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED,
		"this caller may not call this method")
	errOwnAccount = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_OWN_ACCOUNT,
		"not for one's own account")
	errLastAdmin = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_LAST_ADMIN,
		"there would be no admin left")
)

// onAccount does something to another person's account as the admin who calls, under locks: those of all admins, so
// that the caller is one until it is done and two who act on each other take turns, and then the account's. The
// token alone is not enough: it may be ten minutes older than the role.
func (s *Service) onAccount(
	ctx context.Context, e *auditEntry, rawTarget string,
	do func(queries *db.Queries, target uuid.UUID, row db.AccountForChangeRow, emit emitFunc) error,
) error {
	caller := identity.From(ctx)
	target, err := uuid.Parse(rawTarget)
	if err != nil {
		return fmt.Errorf("parse an id that was validated: %w", err)
	}
	e.account, e.actor = target, actorAdmin
	if target == caller.UserID {
		e.actor = actorSelf
		return s.refused(ctx, *e, errOwnAccount)
	}
	return s.act(ctx, e, func(queries *db.Queries, emit emitFunc) error {
		admins, err := s.lockAdmins(ctx, queries)
		if err != nil {
			return err
		}
		if !admins[caller.UserID] {
			return errNotAdmin
		}
		row, err := lockAccount(ctx, queries, target)
		if err != nil {
			return err
		}
		return do(queries, target, row, emit)
	})
}

// lockAdmins returns the admins who are not suspended, with the accounts of all admins locked.
func (s *Service) lockAdmins(ctx context.Context, queries *db.Queries) (map[uuid.UUID]bool, error) {
	rows, err := queries.AdminsLocked(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock admins: %w", err)
	}
	now, active := s.clock.Now(), map[uuid.UUID]bool{}
	for _, row := range rows {
		if !suspended(now, row.SuspendedAt, row.SuspendedUntil) {
			active[row.ID] = true
		}
	}
	return active, nil
}

// asAdmin reads something as the admin who calls, and records that.
func (s *Service) asAdmin(ctx context.Context, e *auditEntry, read func(queries *db.Queries) error) error {
	e.actor = actorAdmin
	return s.act(ctx, e, func(queries *db.Queries, _ emitFunc) error {
		admin, err := queries.AccountIsAdmin(ctx, db.AccountIsAdminParams{ID: identity.From(ctx).UserID, Now: s.clock.Now()})
		if err != nil {
			return fmt.Errorf("look for the caller's role: %w", err)
		}
		if !admin {
			return errNotAdmin
		}
		return read(queries)
	})
}

// GetAccount implements the RPC.
func (s *Service) GetAccount(ctx context.Context, req *authv1.GetAccountRequest) (*authv1.GetAccountResponse, error) {
	var which db.AccountForAdminParams
	entry := auditEntry{action: auditAccountRead}
	name := req.GetUsername()
	if name != "" {
		key := nameKey(name)
		which.UsernameKey = &key
	} else {
		id, err := uuid.Parse(req.GetUserId())
		if err != nil {
			return nil, fmt.Errorf("parse an id that was validated: %w", err)
		}
		which.ID, entry.account = &id, id
	}
	var row db.AccountForAdminRow
	err := s.asAdmin(ctx, &entry, func(queries *db.Queries) (err error) {
		row, err = queries.AccountForAdmin(ctx, which)
		if errors.Is(err, pgx.ErrNoRows) {
			if name != "" {
				entry.details = map[string]string{"username": name} // all that tells what was looked for
			}
			return errAccountNotFound
		}
		if err != nil {
			return fmt.Errorf("select account: %w", err)
		}
		entry.account = row.ID
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.accountForAdmin(row)
}

func (s *Service) accountForAdmin(row db.AccountForAdminRow) (*authv1.GetAccountResponse, error) {
	role, err := roleToProto(row.Role)
	if err != nil {
		return nil, err
	}
	res := &authv1.GetAccountResponse{
		UserId: row.ID.String(), Username: row.Username, Email: row.Email, EmailVerifiedAt: timeToProto(row.EmailVerifiedAt),
		Role: role, CreatedAt: timestamppb.New(row.CreatedAt), SecondFactor: row.SecondFactor,
	}
	if suspended(s.clock.Now(), row.SuspendedAt, row.SuspendedUntil) {
		res.Suspension = &authv1.Suspension{
			SuspendedAt: timeToProto(row.SuspendedAt), Until: timeToProto(row.SuspendedUntil), Note: row.SuspensionNote,
		}
	}
	return res, nil
}

// SetRole implements the RPC.
func (s *Service) SetRole(ctx context.Context, req *authv1.SetRoleRequest) (*authv1.SetRoleResponse, error) {
	role, ok := storedRoles[req.GetRole()]
	if !ok {
		return nil, rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT, "no such role")
	}
	res := &authv1.SetRoleResponse{}
	entry := auditEntry{action: auditRoleSet}
	err := s.onAccount(ctx, &entry, req.GetUserId(), func(queries *db.Queries, target uuid.UUID, row db.AccountForChangeRow, emit emitFunc) (err error) {
		if res.Before, err = roleToProto(row.Role); err != nil {
			return err
		}
		entry.details = map[string]string{"before": row.Role, "role": role.String()}
		return s.setRole(ctx, queries, target, row.Role, role, emit)
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

var storedRoles = map[authv1.Role]identity.Role{
	authv1.Role_ROLE_USER:      identity.RoleUser,
	authv1.Role_ROLE_MODERATOR: identity.RoleModerator,
	authv1.Role_ROLE_ADMIN:     identity.RoleAdmin,
}

// setRole changes the role of an account. The caller holds the locks of all admins and of the account. Who loses a
// right is logged out, because tokens still carry it; a right that was gained comes with the next refresh.
func (s *Service) setRole(ctx context.Context, queries *db.Queries, target uuid.UUID, before string, role identity.Role, emit emitFunc) error {
	had, err := identity.ParseRole(before)
	if err != nil {
		return fmt.Errorf("stored role: %w", err)
	}
	if had == role {
		return nil
	}
	if had == identity.RoleAdmin {
		admins, err := s.lockAdmins(ctx, queries)
		if err != nil {
			return err
		}
		if delete(admins, target); len(admins) == 0 {
			return errLastAdmin
		}
	}
	if err := queries.AccountSetRole(ctx, db.AccountSetRoleParams{Role: role.String(), ID: target}); err != nil {
		return fmt.Errorf("update role: %w", err)
	}
	if role > had {
		return nil
	}
	_, err = s.revokeAll(ctx, queries, target, uuid.Nil, emit)
	return err
}

// ListAuditEvents implements the RPC.
func (s *Service) ListAuditEvents(ctx context.Context, req *authv1.ListAuditEventsRequest) (*authv1.ListAuditEventsResponse, error) {
	account := uuid.Nil
	if raw := req.GetUserId(); raw != "" {
		var err error
		if account, err = uuid.Parse(raw); err != nil {
			return nil, fmt.Errorf("parse an id that was validated: %w", err)
		}
	}
	res := &authv1.ListAuditEventsResponse{}
	err := s.asAdmin(ctx, &auditEntry{action: auditRecordRead, account: account}, func(queries *db.Queries) error {
		rows, next, err := auditPage(ctx, queries, "auth.audit", account, req.GetPageSize(), req.GetPageToken())
		if err != nil {
			return err
		}
		res.NextPageToken = next
		for _, row := range rows {
			ev, err := auditToProto(row)
			if err != nil {
				return err
			}
			res.Events = append(res.Events, ev)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}
