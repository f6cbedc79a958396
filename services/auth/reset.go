package auth

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

// RequestPasswordReset implements the RPC. The account is looked for after the answer: nothing that the caller can
// see or measure depends on whether there is one.
func (s *Service) RequestPasswordReset(ctx context.Context, req *authv1.RequestPasswordResetRequest) (*authv1.RequestPasswordResetResponse, error) {
	if !s.mails.Enabled() {
		return nil, mail.ErrUnavailable
	}
	login := nameKey(req.GetLogin())
	if err := s.countSend(ctx, purposeResetPassword, login, ""); err != nil {
		return nil, err
	}
	if !s.sendLater(mailRequest{purpose: purposeResetPassword, login: login, from: s.originOf(ctx)}) {
		return nil, rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
			"too many mails are asked for right now"), hashRetryAfter)
	}
	return &authv1.RequestPasswordResetResponse{}, nil
}

// ResetPassword implements the RPC. An account that does not exist and a code that is wrong take the same way: one
// look for the account, one try of a code, one comparison, one entry in the record.
func (s *Service) ResetPassword(ctx context.Context, req *authv1.ResetPasswordRequest) (*authv1.ResetPasswordResponse, error) {
	login := nameKey(req.GetLogin())
	// What can be said of the password without the account comes first: it tells nothing about the account.
	if err := s.passwords.refuseWeak(req.GetNewPassword(), login, login); err != nil {
		return nil, err
	}
	row, right, err := s.checkReset(ctx, login, req.GetCode())
	if err != nil {
		return nil, err
	}
	if err := s.passwords.refuseWeak(req.GetNewPassword(), row.Username, row.Email); err != nil {
		return nil, err
	}
	hash, err := s.passwords.hash(ctx, req.GetNewPassword())
	if err != nil {
		return nil, err
	}
	// It ends a theft and needs the mailbox: no thief's doings may stand before it.
	entry := auditEntry{action: auditPasswordReset, account: row.ID, always: true}
	err = s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) error {
		// The account's lock comes first, as everywhere: two resets take turns.
		now, err := lockAccount(ctx, queries, row.ID)
		if err != nil {
			return err
		}
		if err := right.spendAt(ctx, queries, now.Email); err != nil {
			return err
		}
		// Whoever read the code has the mailbox.
		verified, err := queries.AccountVerifyEmail(ctx, db.AccountVerifyEmailParams{VerifiedAt: s.clock.Now(), ID: row.ID, Email: right.email})
		if err != nil {
			return fmt.Errorf("verify address: %w", err)
		}
		of := recipient{row.ID, now.Username, now.Email}
		if verified > 0 {
			if err := s.clearStrangers(ctx, queries, of); err != nil {
				return err
			}
		}
		_, err = s.setPassword(ctx, queries, of, hash, uuid.Nil, emit)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return &authv1.ResetPasswordResponse{}, nil
}

// clearStrangers takes from an account what whoever made it may have left there to come back with: identities, the
// second factor. Until its address was verified, that may have been somebody who typed the address of another ("trojan
// identifier", Sudhodanan and Paverd, 2022); the address's owner gets an account that is theirs alone. A mail names each.
func (s *Service) clearStrangers(ctx context.Context, queries *db.Queries, of recipient) error {
	byReset := func(action string, more map[string]string) error {
		more["by"] = "reset"
		return s.audit(ctx, queries, auditEntry{action: action, account: of.id, details: more}, errorv1.Reason_REASON_UNSPECIFIED)
	}
	providers, err := queries.IdentitiesDrop(ctx, of.id)
	if err != nil {
		return fmt.Errorf("delete identities: %w", err)
	}
	for _, name := range providers {
		if err := byReset(auditIdentityUnlinked, map[string]string{"provider": name}); err != nil {
			return err
		}
		if err := s.notice(ctx, queries, of, mail.IdentityUnlinked, s.withProvider(ctx, name)); err != nil {
			return err
		}
	}
	off, err := queries.SecondFactorDelete(ctx, of.id)
	if err != nil {
		return fmt.Errorf("delete second factor: %w", err)
	}
	if off == 0 {
		return nil
	}
	if err := byReset(auditFactorOff, map[string]string{}); err != nil {
		return err
	}
	return s.notice(ctx, queries, of, mail.SecondFactorOff, s.callOrigin(ctx))
}

// checkReset checks the code of an account that may not exist.
func (s *Service) checkReset(ctx context.Context, login, code string) (row db.AccountByLoginRow, right ticket, err error) {
	subjects := append(s.addressSubject(ctx, "code", s.loginAddressLimit), hashedSubject("code:login:", login, s.loginLimit))
	err = s.guess(ctx, subjects, func() error {
		row, err = db.New(s.pool).AccountByLogin(ctx, login)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("select account: %w", err)
		}
		return s.guessSilently(ctx, "reset", row.ID, login, errCodeInvalid, func() (err error) {
			right, err = s.checkCode(ctx, purposeResetPassword, row.ID, code)
			return err
		})
	})
	return row, right, s.refused(ctx, auditEntry{action: auditPasswordReset, account: row.ID}, err)
}
