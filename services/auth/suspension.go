package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var errUntilPast = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT,
	"the end of the suspension has passed")

// suspended says whether an account may not log in. A suspension with an end is over at that moment, even before the
// job has tidied it up.
func suspended(now time.Time, at, until *time.Time) bool {
	return at != nil && (until == nil || now.Before(*until))
}

// errSuspended is told to nobody but those who have proved to be the account's owner.
func errSuspended(until *time.Time) error {
	err := rpc.Error(connect.CodePermissionDenied, errorv1.Reason_REASON_ACCOUNT_SUSPENDED, "the account is suspended")
	if until == nil {
		return err
	}
	return rpc.WithMetadata(err, "until", until.UTC().Format(time.RFC3339))
}

// SuspendAccount implements the RPC.
func (s *Service) SuspendAccount(ctx context.Context, req *authv1.SuspendAccountRequest) (*authv1.SuspendAccountResponse, error) {
	var until *time.Time
	entry := auditEntry{action: auditSuspended, details: map[string]string{"note": req.GetNote()}}
	if req.GetUntil() != nil {
		end := req.GetUntil().AsTime().Truncate(time.Microsecond) // what the column keeps
		until, entry.details["until"] = &end, end.Format(time.RFC3339)
	}
	err := s.onAccount(ctx, &entry, req.GetUserId(), func(queries *db.Queries, target uuid.UUID, row db.AccountForChangeRow, emit emitFunc) error {
		now := s.clock.Now().Truncate(time.Microsecond)
		if until != nil && (!req.GetUntil().IsValid() || !until.After(now)) {
			return errUntilPast
		}
		if suspended(now, row.SuspendedAt, row.SuspendedUntil) && sameTime(row.SuspendedUntil, until) && row.SuspensionNote == req.GetNote() {
			return nil
		}
		version, err := queries.AccountSuspend(ctx, db.AccountSuspendParams{
			SuspendedAt: now, SuspendedUntil: until, SuspensionNote: req.GetNote(), ID: target,
		})
		if err != nil {
			return fmt.Errorf("suspend account: %w", err)
		}
		data := map[string]string{}
		if until != nil {
			data["until"] = until.UTC().Format("2 January 2006, 15:04 UTC")
		}
		if err := s.notice(ctx, queries, recipient{target, row.Username, row.Email}, mail.AccountSuspended, data); err != nil {
			return err
		}
		if _, err := s.revokeAll(ctx, queries, target, uuid.Nil, emit); err != nil {
			return err
		}
		return emit(accountSuspended(target, version, now, until))
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return &authv1.SuspendAccountResponse{}, nil
}

// UnsuspendAccount implements the RPC.
func (s *Service) UnsuspendAccount(ctx context.Context, req *authv1.UnsuspendAccountRequest) (*authv1.UnsuspendAccountResponse, error) {
	err := s.onAccount(ctx, &auditEntry{action: auditUnsuspended}, req.GetUserId(), func(queries *db.Queries, target uuid.UUID, _ db.AccountForChangeRow, emit emitFunc) error {
		version, err := queries.AccountUnsuspend(ctx, target)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unsuspend account: %w", err)
		}
		return emit(accountUnsuspended(target, version, s.clock.Now()))
	})
	if err != nil {
		return nil, err
	}
	return &authv1.UnsuspendAccountResponse{}, nil
}

// unsuspendBatch bounds the rows and events of one transaction.
const unsuspendBatch = 250

// endSuspensions tidies up the suspensions whose time has come, and tells of them.
func (s *Service) endSuspensions(ctx context.Context) error {
	for {
		ended := 0
		err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
			queries, now := db.New(tx), s.clock.Now()
			rows, err := queries.AccountsUnsuspendDue(ctx, db.AccountsUnsuspendDueParams{Now: now, Batch: unsuspendBatch})
			if err != nil {
				return fmt.Errorf("end suspensions: %w", err)
			}
			for _, row := range rows {
				err := s.audit(ctx, queries, auditEntry{action: auditUnsuspended, account: row.ID, actor: actorSystem}, errorv1.Reason_REASON_UNSPECIFIED)
				if err == nil {
					err = emit(accountUnsuspended(row.ID, row.Version, now))
				}
				if err != nil {
					return err
				}
			}
			ended = len(rows)
			return nil
		})
		if err != nil || ended < unsuspendBatch {
			return err
		}
	}
}
