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
	if !s.mails.Enabled() {
		return mail.ErrUnavailable
	}
	if err := s.countSend(ctx, p, "id:"+to.id.String(), to.email); err != nil {
		return err
	}
	if err := s.sendCode(ctx, p, to); err != nil {
		return err
	}
	return s.audit(ctx, db.New(s.pool), auditEntry{action: action, account: to.id}, errorv1.Reason_REASON_UNSPECIFIED)
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
	err = s.byCode(ctx, auditEmailVerified, purposeVerifyEmail, req.GetCode(), func(queries *db.Queries, _ db.AccountForChangeRow, right ticket, _ emitFunc) error {
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
	ctx context.Context, action string, p purpose, code string,
	do func(queries *db.Queries, row db.AccountForChangeRow, right ticket, emit emitFunc) error,
) error {
	me := identity.From(ctx).UserID
	right, err := s.guessCode(ctx, action, p, code)
	if err != nil {
		return err
	}
	return s.act(ctx, &auditEntry{action: action, account: me}, func(queries *db.Queries, emit emitFunc) error {
		// The account's lock comes first, as everywhere.
		row, err := lockAccount(ctx, queries, me)
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

// StartEmailChange implements the RPC.
func (s *Service) StartEmailChange(ctx context.Context, req *authv1.StartEmailChangeRequest) (*authv1.StartEmailChangeResponse, error) {
	me := identity.From(ctx).UserID
	checked, err := s.confirmPassword(ctx, auditEmailCodeSent, me, req.GetPassword())
	if err != nil {
		return nil, err
	}
	if checked.SecondFactor {
		if err := s.guessFactor(ctx, auditEmailCodeSent, me, req.GetSecondFactorCode()); err != nil {
			return nil, err
		}
	}
	// Whether the address is free is not told here: the code's owner learns it.
	if err := s.mailCode(ctx, auditEmailCodeSent, purposeChangeEmail, recipient{me, checked.Username, req.GetNewEmail()}); err != nil {
		return nil, err
	}
	return &authv1.StartEmailChangeResponse{}, nil
}

// ConfirmEmailChange implements the RPC.
func (s *Service) ConfirmEmailChange(ctx context.Context, req *authv1.ConfirmEmailChangeRequest) (*authv1.ConfirmEmailChangeResponse, error) {
	caller := identity.From(ctx)
	res := &authv1.ConfirmEmailChangeResponse{}
	err := s.byCode(ctx, auditEmailChanged, purposeChangeEmail, req.GetCode(), func(queries *db.Queries, row db.AccountForChangeRow, right ticket, emit emitFunc) error {
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
