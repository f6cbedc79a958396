package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// forget is auth's part of deleting a person: every session ends, and the account goes with all that refers to
// it, its names and addresses among it, which are free again. The row is deleted rather than emptied so that
// the foreign keys do both: remove what other tables hold, also those of later releases, and refuse what a
// log-in in flight would still write.
//
// In the record stays what was done to the account and when, which admins answer for; nothing of it names the
// person or says from where.
func (s *Service) forget(ctx context.Context, tx pgx.Tx, person uuid.UUID) error {
	queries := db.New(tx)
	switch _, err := queries.AccountLockForErase(ctx, person); {
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
	if err := queries.AccountErase(ctx, person); err != nil {
		return fmt.Errorf("delete account: %w", err)
	}
	return nil
}
