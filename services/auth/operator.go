package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/outbox"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// Operator is the way of somebody with auth's role in the database past the API: how the first admin comes to be. It
// is no part of the running service, whose relay publishes the events of what is done here within seconds.
type Operator struct {
	service Service
}

// NewOperator takes a pool as auth's role.
func NewOperator(pool *pgxpool.Pool, clk clock.Clock, log *slog.Logger) *Operator {
	// Without a bus: rows are only appended, never published from here.
	return &Operator{Service{pool: pool, outbox: outbox.New(pool, nil, "auth", clk, log), clock: clk, log: log}}
}

// Granted is what Grant has done.
type Granted struct {
	UserID uuid.UUID
	Before identity.Role
}

// Grant gives the account of that user name or address a role, as an admin does by SetRole. by names the person at
// the command line, for the record. It fails with ACCOUNT_NOT_FOUND, and with LAST_ADMIN where nobody would be left
// who is an admin.
func (o *Operator) Grant(ctx context.Context, login string, role identity.Role, by string) (Granted, error) {
	var done Granted
	s := &o.service
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		queries := db.New(tx)
		found, err := queries.AccountByLogin(ctx, nameKey(login))
		if errors.Is(err, pgx.ErrNoRows) {
			return errAccountNotFound
		}
		if err != nil {
			return fmt.Errorf("select account: %w", err)
		}
		// The locks in their order: all admins, then the account.
		if _, err := s.lockAdmins(ctx, queries); err != nil {
			return err
		}
		row, err := lockAccount(ctx, queries, found.ID)
		if err != nil {
			return err
		}
		if done.Before, err = identity.ParseRole(row.Role); err != nil {
			return fmt.Errorf("stored role: %w", err)
		}
		done.UserID = found.ID
		var events []*eventv1.Event
		emit := func(more ...*eventv1.Event) error { events = append(events, more...); return nil }
		if err := s.setRole(ctx, queries, found.ID, row.Role, role, emit); err != nil {
			return err
		}
		err = s.audit(ctx, queries, auditEntry{
			action: auditRoleSet, account: found.ID, actor: actorOperator,
			details: map[string]string{"before": row.Role, "role": role.String(), "operator": printable(by, maxUserAgent)},
		}, errorv1.Reason_REASON_UNSPECIFIED)
		if err != nil {
			return err
		}
		return s.outbox.Append(ctx, tx, events...)
	})
	return done, err
}
