package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/erasure"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// What people do at user and the record of auth tells of.
const (
	auditDeletionRequested = "account.deletion_requested"
	auditDeletionCancelled = "account.deletion_cancelled"
	auditDataExported      = "account.data_exported"
	auditErasureViewed     = "admin.erasure_viewed"
	auditErasuresRepeated  = "admin.erasures_repeated"
)

// listeners are the subscriptions of the service.
func (s *Service) listeners() []event.Listener {
	return []event.Listener{
		erasure.Listener("auth", s.outbox, s.forget),
		event.On("user", "user.deletion_requested", event.Once,
			func(ctx context.Context, tx pgx.Tx, _ *eventv1.Event, e *userv1.UserDeletionRequested) error {
				return s.record(ctx, tx, auditDeletionRequested, e.GetUserId())
			}),
		event.On("user", "user.deletion_cancelled", event.Once,
			func(ctx context.Context, tx pgx.Tx, _ *eventv1.Event, e *userv1.UserDeletionCancelled) error {
				return s.record(ctx, tx, auditDeletionCancelled, e.GetUserId())
			}),
		event.On("user", "user.data_exported", event.Once,
			func(ctx context.Context, tx pgx.Tx, _ *eventv1.Event, e *userv1.UserDataExported) error {
				return s.record(ctx, tx, auditDataExported, e.GetUserId())
			}),
		event.On("user", "user.erasure_viewed", event.Once,
			func(ctx context.Context, tx pgx.Tx, _ *eventv1.Event, e *userv1.UserErasureViewed) error {
				return s.recordAdmin(ctx, tx, auditErasureViewed, e.GetViewedBy(), e.GetUserId())
			}),
		event.On("user", "user.erasures_repeated", event.Once,
			func(ctx context.Context, tx pgx.Tx, _ *eventv1.Event, e *userv1.UserErasuresRepeated) error {
				return s.recordAdmin(ctx, tx, auditErasuresRepeated, e.GetRepeatedBy(), "")
			}),
	}
}

// record writes an entry about what a person has done at another service. From where is not known here.
func (s *Service) record(ctx context.Context, tx pgx.Tx, action, user string) error {
	id, err := uuid.Parse(user)
	if err != nil {
		return fmt.Errorf("the person's id: %w", err)
	}
	return s.audit(ctx, db.New(tx), auditEntry{action: action, account: id, actor: actorSelf}, errorv1.Reason_REASON_UNSPECIFIED)
}

// recordAdmin writes an entry about what an admin has done at another service, to a person or (empty) to all.
func (s *Service) recordAdmin(ctx context.Context, tx pgx.Tx, action, admin, user string) error {
	by, err := uuid.Parse(admin)
	if err != nil {
		return fmt.Errorf("the admin's id: %w", err)
	}
	entry := auditEntry{action: action, actor: actorAdmin, admin: by}
	if user != "" {
		if entry.account, err = uuid.Parse(user); err != nil {
			return fmt.Errorf("the person's id: %w", err)
		}
	}
	return s.audit(ctx, db.New(tx), entry, errorv1.Reason_REASON_UNSPECIFIED)
}

// forget is auth's part of deleting a person: every session ends, and the account goes with all that refers to
// it, its names and addresses among it, which are free again. The row is deleted rather than emptied so that
// the foreign keys do both: remove what other tables hold, also those of later releases, and refuse what a
// log-in in flight would still write.
//
// In the record stays what was done to the account and when, which admins answer for; nothing of it names the
// person or says from where.
func (s *Service) forget(ctx context.Context, tx pgx.Tx, person uuid.UUID) error {
	queries := db.New(tx)
	role, err := queries.AccountLockForErase(ctx, person)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // nobody, or gone before: the record may still hold something
	case err != nil:
		return fmt.Errorf("lock account: %w", err)
	}
	emit := func(events ...*eventv1.Event) error { return s.outbox.Append(ctx, tx, events...) }
	if _, err := s.revokeAll(ctx, queries, person, uuid.Nil, emit); err != nil {
		return err
	}
	if err := queries.AuditForget(ctx, person); err != nil {
		return fmt.Errorf("empty the record: %w", err)
	}
	if err := queries.AuditForgetAdmin(ctx, person); err != nil {
		return fmt.Errorf("empty the record of an admin: %w", err)
	}
	if err := queries.AuditForgetBearer(ctx, person); err != nil {
		return fmt.Errorf("empty the record of others: %w", err)
	}
	if err := queries.AccountErase(ctx, person); err != nil {
		return fmt.Errorf("delete account: %w", err)
	}
	return s.missAdmin(ctx, queries, role)
}

// missAdmin tells the operator when nobody is left who is an admin. A person's right to go is not refused for it:
// whoever has the database makes the next one by `parley admin grant`.
func (s *Service) missAdmin(ctx context.Context, queries *db.Queries, role string) error {
	if role != identity.RoleAdmin.String() {
		return nil
	}
	admins, err := queries.AdminsLeft(ctx)
	if err != nil {
		return fmt.Errorf("count admins: %w", err)
	}
	if admins == 0 {
		s.log.ErrorContext(ctx, "the last admin has left: parley admin grant makes another")
	}
	return nil
}
