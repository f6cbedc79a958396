package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var (
	errFactorInvalid = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_SECOND_FACTOR_INVALID,
		"the code is wrong or was used before")
	errFactorOn = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_ON,
		"the account has a second factor")
	errFactorOff = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_OFF,
		"the account has no second factor")
	errChallengeInvalid = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_CHALLENGE_INVALID,
		"this log-in has expired, begin again")
)

// errSecondFactorRequired carries the challenge to whoever knew the password.
func errSecondFactorRequired(challenge string) error {
	return rpc.WithMetadata(rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_REQUIRED,
		"a code of the second factor is needed"), "challenge", challenge)
}

const (
	challengeLife  = 5 * time.Minute
	challengeTries = 5
	// challengesAtOnce bounds the rows that an account's own password makes.
	challengesAtOnce = 5
)

// challenge stores what a log-in waits with for its second factor.
func (s *Service) challenge(ctx context.Context, queries *db.Queries, e entrance, now time.Time) (string, error) {
	token := newChallengeToken()
	sum := sha256.Sum256([]byte(token))
	err := queries.ChallengePut(ctx, db.ChallengePutParams{
		TokenHash: sum[:], AccountID: e.accountID, DeviceName: e.device, ExpiresAt: now.Add(challengeLife),
	})
	if err != nil {
		return "", fmt.Errorf("insert challenge: %w", err)
	}
	err = queries.ChallengeDropExcess(ctx, db.ChallengeDropExcessParams{AccountID: e.accountID, TokenHash: sum[:], Keep: challengesAtOnce})
	if err != nil {
		return "", fmt.Errorf("drop challenges: %w", err)
	}
	return token, nil
}

// CompleteLogIn implements the RPC. The try is counted and committed before the code is compared; challenge, code
// and session are spent and begun in one transaction.
func (s *Service) CompleteLogIn(ctx context.Context, req *authv1.CompleteLogInRequest) (*authv1.CompleteLogInResponse, error) {
	sum := sha256.Sum256([]byte(req.GetChallenge()))
	queries := db.New(s.pool)
	row, err := queries.ChallengeOf(ctx, db.ChallengeOfParams{TokenHash: sum[:], Now: s.clock.Now()})
	unknown := errors.Is(err, pgx.ErrNoRows)
	if err != nil && !unknown {
		return nil, fmt.Errorf("select challenge: %w", err)
	}
	// An unknown challenge counts against the address alone.
	var tokens *authv1.Tokens
	err = s.guess(ctx, s.guessesAt(ctx, "factor", row.AccountID), func() error {
		if unknown {
			return errChallengeInvalid
		}
		tokens, err = s.answerChallenge(ctx, row, sum[:], req.GetCode())
		return err
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return &authv1.CompleteLogInResponse{UserId: row.AccountID.String(), Tokens: tokens}, nil
}

// answerChallenge takes a try of the challenge and lets in who has the code.
func (s *Service) answerChallenge(ctx context.Context, row db.ChallengeOfRow, tokenHash []byte, code string) (*authv1.Tokens, error) {
	tried, err := db.New(s.pool).ChallengeTry(ctx, db.ChallengeTryParams{TokenHash: tokenHash, Now: s.clock.Now(), MaxTries: challengeTries})
	if err != nil {
		return nil, fmt.Errorf("try challenge: %w", err)
	}
	if tried == 0 {
		return nil, s.refused(ctx, auditEntry{action: auditLogIn, account: row.AccountID}, errChallengeInvalid)
	}
	proof := map[string]string{"by": byApp}
	return s.admit(ctx, entrance{
		accountID: row.AccountID, device: row.DeviceName, proof: proof, factorGiven: true,
		check: func(ctx context.Context, queries *db.Queries, account db.AccountForLogInRow) (err error) {
			of := recipient{row.AccountID, account.Username, account.Email}
			if proof["by"], err = s.spendFactor(ctx, queries, of, code); err != nil {
				return err
			}
			return useChallenge(ctx, queries, tokenHash)
		},
	})
}

// useChallenge spends a challenge, with the code that it asked for. A password that was changed meanwhile has taken
// it away.
func useChallenge(ctx context.Context, queries *db.Queries, tokenHash []byte) error {
	used, err := queries.ChallengeUse(ctx, tokenHash)
	if err != nil {
		return fmt.Errorf("use challenge: %w", err)
	}
	if used == 0 {
		return errChallengeInvalid
	}
	return nil
}

// GetSecondFactor implements the RPC.
func (s *Service) GetSecondFactor(ctx context.Context, _ *authv1.GetSecondFactorRequest) (*authv1.GetSecondFactorResponse, error) {
	row, err := db.New(s.pool).SecondFactorStatus(ctx, identity.From(ctx).UserID)
	if errors.Is(err, pgx.ErrNoRows) {
		return &authv1.GetSecondFactorResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("select second factor: %w", err)
	}
	return &authv1.GetSecondFactorResponse{OnSince: timeToProto(row.ConfirmedAt), RecoveryCodesLeft: row.RecoveryCodes}, nil
}

// EnrolSecondFactor implements the RPC.
func (s *Service) EnrolSecondFactor(ctx context.Context, req *authv1.EnrolSecondFactorRequest) (*authv1.EnrolSecondFactorResponse, error) {
	caller := identity.From(ctx)
	me := caller.UserID
	checked, err := s.proveOwner(ctx, auditFactorEnrolled, caller, req.GetPassword())
	if err != nil {
		return nil, err
	}
	key, err := newSecret(s.factorIssuer, checked.Username)
	if err != nil {
		return nil, err
	}
	err = s.act(ctx, &auditEntry{action: auditFactorEnrolled, account: me}, func(queries *db.Queries, _ emitFunc) error {
		if _, err := s.lockChecked(ctx, queries, caller, checked); err != nil {
			return err
		}
		enrolled, err := queries.SecondFactorEnrol(ctx, db.SecondFactorEnrolParams{
			AccountID: me, SealedSecret: s.factors.seal(me, key.Secret()), CreatedAt: s.clock.Now(),
		})
		if err != nil {
			return fmt.Errorf("insert second factor: %w", err)
		}
		if enrolled == 0 {
			return errFactorOn
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &authv1.EnrolSecondFactorResponse{Secret: key.Secret(), Uri: key.URL()}, nil
}

// ConfirmSecondFactor implements the RPC.
func (s *Service) ConfirmSecondFactor(ctx context.Context, req *authv1.ConfirmSecondFactorRequest) (*authv1.ConfirmSecondFactorResponse, error) {
	caller := identity.From(ctx)
	me := caller.UserID
	var row db.SecondFactorOfRow
	var step int64
	err := s.guess(ctx, s.guessesAt(ctx, "factor", me), func() (err error) {
		row, step, err = s.checkEnrolment(ctx, me, req.GetCode())
		return err
	})
	if err != nil {
		return nil, s.refused(ctx, auditEntry{action: auditFactorOn, account: me}, err)
	}
	res := &authv1.ConfirmSecondFactorResponse{}
	// It ends a theft of the password: no thief's doings may stand before it.
	err = s.act(ctx, &auditEntry{action: auditFactorOn, account: me, always: true}, func(queries *db.Queries, _ emitFunc) error {
		account, err := s.lockOwn(ctx, queries, caller)
		if err != nil {
			return err
		}
		confirmed, err := queries.SecondFactorConfirm(ctx, db.SecondFactorConfirmParams{
			ConfirmedAt: s.clock.Now(), Step: step, AccountID: me, SealedSecret: row.SealedSecret,
		})
		if err != nil {
			return fmt.Errorf("confirm second factor: %w", err)
		}
		if confirmed == 0 {
			return errFactorOff // another enrolment was begun meanwhile
		}
		if res.RecoveryCodes, err = s.newRecoveryCodes(ctx, queries, me); err != nil {
			return err
		}
		return s.notice(ctx, queries, recipient{me, account.Username, account.Email}, mail.NewSecondFactor, s.callOrigin(ctx))
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return res, nil
}

// checkEnrolment compares a code with a secret that is not confirmed yet.
func (s *Service) checkEnrolment(ctx context.Context, account uuid.UUID, code string) (row db.SecondFactorOfRow, step int64, err error) {
	row, err = db.New(s.pool).SecondFactorOf(ctx, account)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return row, 0, errFactorOff
	case err != nil:
		return row, 0, fmt.Errorf("select second factor: %w", err)
	case row.ConfirmedAt != nil:
		return row, 0, errFactorOn
	}
	secret, err := s.factors.open(account, row.SealedSecret)
	if err != nil {
		return row, 0, err
	}
	step, ok, err := matchStep(secret, code, s.clock.Now())
	if err == nil && !ok {
		err = errFactorInvalid
	}
	return row, step, err
}

// DisableSecondFactor implements the RPC.
func (s *Service) DisableSecondFactor(ctx context.Context, req *authv1.DisableSecondFactorRequest) (*authv1.DisableSecondFactorResponse, error) {
	err := s.byProof(ctx, auditFactorOff, purposeDisableFactor, req.GetProof(), func(queries *db.Queries, me recipient) error {
		deleted, err := queries.SecondFactorDelete(ctx, me.id)
		if err != nil {
			return fmt.Errorf("delete second factor: %w", err)
		}
		if deleted == 0 {
			return errFactorOff
		}
		return s.notice(ctx, queries, me, mail.SecondFactorOff, s.callOrigin(ctx))
	})
	if err != nil {
		return nil, err
	}
	return &authv1.DisableSecondFactorResponse{}, nil
}

// RegenerateRecoveryCodes implements the RPC.
func (s *Service) RegenerateRecoveryCodes(ctx context.Context, req *authv1.RegenerateRecoveryCodesRequest) (*authv1.RegenerateRecoveryCodesResponse, error) {
	res := &authv1.RegenerateRecoveryCodesResponse{}
	err := s.byProof(ctx, auditRecoveryRenewed, purposeRenewRecoveries, req.GetProof(), func(queries *db.Queries, me recipient) (err error) {
		on, err := secondFactorOn(ctx, queries, me.id)
		if err != nil {
			return err
		}
		if !on {
			return errFactorOff
		}
		res.RecoveryCodes, err = s.newRecoveryCodes(ctx, queries, me.id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// byProof changes the second factor of the caller, who proves to be the owner and to have a code: of the app, for
// recovery, or mailed for just this. The code is spent with the change.
func (s *Service) byProof(
	ctx context.Context, action string, p purpose, proof *authv1.SecondFactorProof, do func(queries *db.Queries, me recipient) error,
) error {
	caller := identity.From(ctx)
	me := caller.UserID
	checked, err := s.proveOwner(ctx, action, caller, proof.GetPassword())
	if err != nil {
		return err
	}
	if !checked.SecondFactor {
		return errFactorOff
	}
	entry := auditEntry{action: action, account: me, details: map[string]string{"by": byMailedCode}}
	spend := func(queries *db.Queries, of recipient) (err error) {
		entry.details["by"], err = s.spendFactor(ctx, queries, of, proof.GetCode())
		return err
	}
	what := "factor"
	if mailed := proof.GetMailedCode(); mailed != "" {
		right, err := s.guessCode(ctx, action, p, mailed)
		if err != nil {
			return err
		}
		spend = func(queries *db.Queries, of recipient) error { return right.spendAt(ctx, queries, of.email) }
		what = "code"
	}
	err = s.guess(ctx, s.guessesAt(ctx, what, me), func() error {
		return s.act(ctx, &entry, func(queries *db.Queries, _ emitFunc) error {
			row, err := s.lockChecked(ctx, queries, caller, checked)
			if err != nil {
				return err
			}
			of := recipient{me, row.Username, row.Email}
			if err := spend(queries, of); err != nil {
				return err
			}
			return do(queries, of)
		})
	})
	if err == nil {
		s.noticesWait()
	}
	return err
}

// actionPurposes are the codes that SendActionCode sends.
var actionPurposes = map[authv1.ConfirmedAction]purpose{
	authv1.ConfirmedAction_CONFIRMED_ACTION_DISABLE_SECOND_FACTOR:     purposeDisableFactor,
	authv1.ConfirmedAction_CONFIRMED_ACTION_REGENERATE_RECOVERY_CODES: purposeRenewRecoveries,
}

// SendActionCode implements the RPC.
func (s *Service) SendActionCode(ctx context.Context, req *authv1.SendActionCodeRequest) (*authv1.SendActionCodeResponse, error) {
	me := identity.From(ctx).UserID
	row, err := s.ownAccount(ctx, me)
	if err != nil {
		return nil, err
	}
	if !row.SecondFactor {
		return nil, errFactorOff
	}
	p, ok := actionPurposes[req.GetAction()]
	if !ok {
		return nil, rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT, "no such action")
	}
	if err := s.mailCode(ctx, auditActionCodeSent, p, recipient{me, row.Username, row.Email}); err != nil {
		return nil, err
	}
	return &authv1.SendActionCodeResponse{}, nil
}
