package auth

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var errVerifiedAlready = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_EMAIL_VERIFIED_ALREADY,
	"the address is verified")

// SendEmailVerification implements the RPC.
func (s *Service) SendEmailVerification(ctx context.Context, _ *authv1.SendEmailVerificationRequest) (*authv1.SendEmailVerificationResponse, error) {
	me := identity.From(ctx).UserID
	row, err := s.ownAccount(ctx, me)
	if err != nil {
		return nil, err
	}
	if row.EmailVerifiedAt != nil {
		return nil, errVerifiedAlready
	}
	if err := s.mailCode(ctx, auditVerificationAsked, purposeVerifyEmail, recipient{me, row.Username, row.Email}); err != nil {
		return nil, err
	}
	return &authv1.SendEmailVerificationResponse{}, nil
}

// mailCode sends a code that its owner waits for, within the limits, and records it.
func (s *Service) mailCode(ctx context.Context, action string, p purpose, to recipient) error {
	if err := s.mayMail(ctx, p, to); err != nil {
		return err
	}
	if err := s.sendCode(ctx, p, to, true); err != nil {
		return err
	}
	return s.audit(ctx, db.New(s.pool), auditEntry{action: action, account: to.id}, errorv1.Reason_REASON_UNSPECIFIED)
}

// mayMail takes one of the mails that somebody may still get.
func (s *Service) mayMail(ctx context.Context, p purpose, to recipient) error {
	if !s.mails.Enabled() {
		return mail.ErrUnavailable
	}
	return s.countSend(ctx, p, "id:"+to.id.String(), to.email)
}

// VerifyEmail implements the RPC.
func (s *Service) VerifyEmail(ctx context.Context, req *authv1.VerifyEmailRequest) (*authv1.VerifyEmailResponse, error) {
	me := identity.From(ctx).UserID
	row, err := s.ownAccount(ctx, me)
	if err != nil {
		return nil, err
	}
	if row.EmailVerifiedAt != nil {
		return &authv1.VerifyEmailResponse{}, nil
	}
	err = s.byCode(ctx, auditEntry{action: auditEmailVerified}, purposeVerifyEmail, req.GetCode(), func(queries *db.Queries, _ db.AccountForChangeRow, right ticket, _ emitFunc) error {
		verified, err := queries.AccountVerifyEmail(ctx, db.AccountVerifyEmailParams{VerifiedAt: s.clock.Now(), ID: me, Email: right.email})
		if err != nil {
			return fmt.Errorf("verify address: %w", err)
		}
		if verified == 0 {
			// The address is another since the code was sent.
			return errCodeInvalid
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &authv1.VerifyEmailResponse{}, nil
}

// byCode does for the caller's account what a mailed code was asked for, together with using it up.
func (s *Service) byCode(
	ctx context.Context, e auditEntry, p purpose, code string,
	do func(queries *db.Queries, row db.AccountForChangeRow, right ticket, emit emitFunc) error,
) error {
	caller := identity.From(ctx)
	right, err := s.guessCode(ctx, e.action, p, code)
	if err != nil {
		return err
	}
	e.account = caller.UserID
	return s.act(ctx, &e, func(queries *db.Queries, emit emitFunc) error {
		// The account's lock comes first, as everywhere.
		row, err := s.lockOwn(ctx, queries, caller)
		if err != nil {
			return err
		}
		if err := right.spend(ctx, queries); err != nil {
			return err
		}
		return do(queries, row, right, emit)
	})
}

// guessCode checks a code of the caller's within the limits.
func (s *Service) guessCode(ctx context.Context, action string, p purpose, code string) (right ticket, err error) {
	me := identity.From(ctx).UserID
	err = s.guess(ctx, s.guessesAt(ctx, "code", me), func() (err error) {
		right, err = s.checkCode(ctx, p, me, code)
		return err
	})
	return right, s.refused(ctx, auditEntry{action: action, account: me}, err)
}

// StartEmailChange implements the RPC. The mail is allowed before the second factor is spent, and the code is stored
// with that: a refused call has spent nothing.
func (s *Service) StartEmailChange(ctx context.Context, req *authv1.StartEmailChangeRequest) (*authv1.StartEmailChangeResponse, error) {
	caller := identity.From(ctx)
	if err := mailable(req.GetNewEmail()); err != nil {
		return nil, err
	}
	checked, err := s.proveOwner(ctx, auditEmailCodeSent, caller, req.GetPassword())
	if err != nil {
		return nil, err
	}
	// Whether the address is free is not told here: the code's owner learns it.
	to := recipient{caller.UserID, checked.Username, req.GetNewEmail()}
	if err := s.mayMail(ctx, purposeChangeEmail, to); err != nil {
		return nil, err
	}
	subjects := []subject(nil)
	if checked.SecondFactor {
		subjects = s.guessesAt(ctx, "factor", caller.UserID)
	}
	var m mail.Message
	err = s.guess(ctx, subjects, func() error {
		m, err = s.putEmailChange(ctx, caller, checked, to, req.GetSecondFactorCode())
		return err
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	if err := s.handOver(ctx, purposeChangeEmail, to.id, m); err != nil {
		return nil, err
	}
	return &authv1.StartEmailChangeResponse{}, nil
}

// putEmailChange stores the code for the new address, and spends the second factor if the account has one.
func (s *Service) putEmailChange(ctx context.Context, caller identity.Caller, checked db.AccountOwnRow, to recipient, factor string) (m mail.Message, err error) {
	entry := auditEntry{action: auditEmailCodeSent, account: caller.UserID, details: map[string]string{"to": masked(to.email)}}
	err = s.act(ctx, &entry, func(queries *db.Queries, _ emitFunc) error {
		row, err := s.lockChecked(ctx, queries, caller, checked)
		if err != nil {
			return err
		}
		on, err := secondFactorOn(ctx, queries, caller.UserID)
		if err != nil {
			return err
		}
		if on {
			by, err := s.spendFactor(ctx, queries, recipient{caller.UserID, row.Username, row.Email}, factor)
			if err != nil {
				return err
			}
			entry.details["by"] = by
		}
		m, err = s.putCode(ctx, queries, purposeChangeEmail, to, true)
		return err
	})
	return m, err
}

// errUnmailable is for addresses that the rules of form let pass and no mail can be sent to.
var errUnmailable = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT,
	"no mail can be sent to this address")

// mailable refuses an address before anything is done with it: later, every mail to it would fail.
func mailable(address string) error {
	if !mail.Mailable(address) {
		return errUnmailable
	}
	return nil
}

// ConfirmEmailChange implements the RPC.
func (s *Service) ConfirmEmailChange(ctx context.Context, req *authv1.ConfirmEmailChangeRequest) (*authv1.ConfirmEmailChangeResponse, error) {
	caller := identity.From(ctx)
	res := &authv1.ConfirmEmailChangeResponse{}
	// It ends a theft and needs both mailbox and session: no thief's doings may stand before it.
	entry := auditEntry{action: auditEmailChanged, always: true}
	err := s.byCode(ctx, entry, purposeChangeEmail, req.GetCode(), func(queries *db.Queries, row db.AccountForChangeRow, right ticket, emit emitFunc) error {
		err := queries.AccountSetEmail(ctx, db.AccountSetEmailParams{
			Email: right.email, EmailKey: nameKey(right.email), VerifiedAt: s.clock.Now(), ID: caller.UserID,
		})
		switch {
		case postgres.IsUniqueViolation(err, "account_email_key"):
			return errEmailTaken
		case err != nil:
			return fmt.Errorf("update address: %w", err)
		}
		// What was sent to the old address proves nothing any more.
		if err := queries.CodesDrop(ctx, caller.UserID); err != nil {
			return fmt.Errorf("drop codes: %w", err)
		}
		old := recipient{caller.UserID, row.Username, row.Email}
		if err := s.notice(ctx, queries, old, mail.EmailChanged, map[string]string{"address": masked(right.email)}); err != nil {
			return err
		}
		res.Email = right.email
		res.RevokedSessions, err = s.revokeAll(ctx, queries, caller.UserID, caller.SessionID, emit)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return res, nil
}

// masked shows an address to its owner and little of it to anybody else: "a***@example.org". The old mailbox may be
// in other hands by now.
func masked(email string) string {
	at := strings.LastIndexByte(email, '@')
	if at <= 0 {
		return "***"
	}
	_, first := utf8.DecodeRuneInString(email)
	return email[:first] + "***" + email[at:]
}
