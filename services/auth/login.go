package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var errCredentials = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID,
	"unknown account or wrong password")

// guesses are the refusals that count as a failed attempt.
var guesses = map[errorv1.Reason]bool{
	errorv1.Reason_REASON_CREDENTIALS_INVALID:   true,
	errorv1.Reason_REASON_CODE_INVALID:          true,
	errorv1.Reason_REASON_SECOND_FACTOR_INVALID: true,
	errorv1.Reason_REASON_CHALLENGE_INVALID:     true,
	errorv1.Reason_REASON_REFRESH_TOKEN_INVALID: true,
}

// guess compares something that could be guessed within the limits of account and address. What is no guess
// (an outage, a mistake of form) counts for nothing.
func (s *Service) guess(ctx context.Context, subjects []subject, compare func() error) (err error) {
	attempt, err := s.attempts.begin(ctx, subjects...)
	if err != nil {
		return err
	}
	result := attemptVoid
	defer func() { attempt.settle(ctx, result) }()
	err = compare()
	switch {
	case err == nil:
		result = attemptSucceeded
	case guesses[rpc.ReasonOf(err)]:
		result = attemptFailed
	}
	return err
}

// guessesAt are the subjects of guessing at something of an account; without an account, of the address alone:
// one count for all would let anybody use up everybody's.
func (s *Service) guessesAt(ctx context.Context, what string, account uuid.UUID) []subject {
	subjects := s.addressSubject(ctx, what, s.loginAddressLimit)
	if account == uuid.Nil {
		return subjects
	}
	return append(subjects, subject{key: what + ":account:" + account.String(), limit: s.loginLimit, forgiven: true})
}

// guessSilently compares within one more count, of the account itself: its user name and its address together get no
// more guesses than one of them. When that count is used up, everything is compared all the same and wrong says that
// it failed: RATE_LIMITED at a name that was hardly tried would tell whose it is. An unknown account counts by the
// name, so that it takes the same time.
func (s *Service) guessSilently(ctx context.Context, what string, account uuid.UUID, login string, wrong error, compare func() error) error {
	of := subject{key: what + ":account:" + account.String(), limit: s.loginLimit, forgiven: true}
	if account == uuid.Nil {
		of = hashedSubject(what+":nobody:", login, s.loginLimit)
	}
	allowed := true
	err := s.guess(ctx, []subject{of}, compare)
	if rpc.ReasonOf(err) == errorv1.Reason_REASON_RATE_LIMITED {
		allowed = false
		err = compare()
	}
	if err == nil && !allowed {
		err = wrong
	}
	return err
}

// LogIn implements the RPC. An unknown account takes the same way as a known one, with a decoy for the
// hash, and counts by the name that was tried: neither answer, time nor limit tells them apart.
func (s *Service) LogIn(ctx context.Context, req *authv1.LogInRequest) (*authv1.LogInResponse, error) {
	login := nameKey(req.GetLogin())
	var row db.AccountCredentialsRow
	subjects := append(s.addressSubject(ctx, "login", s.loginAddressLimit), accountSubject(login, s.loginLimit))
	err := s.guess(ctx, subjects, func() error {
		var err error
		row, err = db.New(s.pool).AccountCredentials(ctx, login)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("select credentials: %w", err)
		}
		return s.guessSilently(ctx, "login", row.ID, login, errCredentials, func() error {
			// Without a row the stored form is empty, which stands for the decoy.
			matches, err := s.passwords.matches(ctx, row.PasswordHash, req.GetPassword())
			if err == nil && !matches {
				err = errCredentials
			}
			return err
		})
	})
	if err != nil {
		return nil, s.refused(ctx, auditEntry{action: auditLogIn, account: row.ID}, err)
	}
	tokens, err := s.admit(ctx, entrance{
		accountID: row.ID, device: req.GetDeviceName(), proof: map[string]string{"by": "password"},
		check: func(_ context.Context, _ *db.Queries, now db.AccountForLogInRow) error {
			if !sameTime(row.PasswordChangedAt, now.PasswordChangedAt) {
				return errCredentials
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	if s.passwords.outdated(row.PasswordHash) {
		s.rehash(ctx, row, req.GetPassword())
	}
	return &authv1.LogInResponse{UserId: row.ID.String(), Tokens: tokens}, nil
}

// entrance is how somebody wants to come in.
type entrance struct {
	accountID uuid.UUID
	device    string
	// proof says what was proved, for the record: check may complete it.
	proof map[string]string
	// check is asked under the account's lock: what it returns refuses. It sees what every change of password,
	// role or suspension that has committed has made of the account, and none can commit until the session has.
	check func(ctx context.Context, queries *db.Queries, row db.AccountForLogInRow) error
	// factorGiven: the second factor is among what was proved.
	factorGiven bool
}

// admit begins a session for somebody who has proved to be the account's owner: the one way in, whatever the
// proof. Refusals: those of check, ACCOUNT_SUSPENDED, SECOND_FACTOR_REQUIRED.
func (s *Service) admit(ctx context.Context, e entrance) (*authv1.Tokens, error) {
	// Before the transaction: a key that cannot be had shall leave no session behind.
	key, err := s.keys.signing(ctx)
	if err != nil {
		return nil, err
	}
	var begun session
	challenge := ""
	entry := auditEntry{action: auditLogIn, account: e.accountID, details: e.proof}
	err = s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) error {
		now := s.clock.Now()
		row, err := queries.AccountForLogIn(ctx, e.accountID)
		if errors.Is(err, pgx.ErrNoRows) {
			return errCredentials // it was deleted meanwhile
		}
		if err != nil {
			return fmt.Errorf("select account: %w", err)
		}
		if err := e.check(ctx, queries, row); err != nil {
			return err
		}
		if suspended(now, row.SuspendedAt, row.SuspendedUntil) {
			return errSuspended(row.SuspendedUntil)
		}
		if !e.factorGiven {
			on, err := secondFactorOn(ctx, queries, e.accountID)
			if err != nil {
				return err
			}
			if on {
				entry.action = auditChallenged
				challenge, err = s.challenge(ctx, queries, e, now)
				return err
			}
		}
		begun, err = s.beginSession(ctx, queries, e, row.Role, now, emit)
		entry.session = begun.id
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case challenge != "":
		return nil, errSecondFactorRequired(challenge)
	}
	// Dying from here on leaves a session whose tokens nobody has; it idles out.
	return s.sign(key, begun)
}

// beginSession inserts a session, and ends those that are too many.
func (s *Service) beginSession(ctx context.Context, queries *db.Queries, e entrance, roleName string, now time.Time, emit emitFunc) (session, error) {
	role, err := identity.ParseRole(roleName)
	if err != nil {
		return session{}, fmt.Errorf("role of account %s: %w", e.accountID, err)
	}
	begun, err := s.newSession(e.accountID, role, now)
	if err != nil {
		return session{}, err
	}
	if err := queries.SessionCreate(ctx, begun.row(e.device, s.originOf(ctx))); err != nil {
		return session{}, fmt.Errorf("insert session: %w", err)
	}
	excess, err := queries.SessionRevokeExcess(ctx, db.SessionRevokeExcessParams{RevokedAt: now, AccountID: e.accountID, Keep: s.sessionsPerAccount})
	if err != nil {
		return session{}, fmt.Errorf("end sessions beyond the limit: %w", err)
	}
	for _, id := range excess {
		dropped := auditEntry{
			action: auditLogOut, account: e.accountID, session: id, actor: actorSystem, details: map[string]string{"by": "too many sessions"},
		}
		if err := s.audit(ctx, queries, dropped, errorv1.Reason_REASON_UNSPECIFIED); err != nil {
			return session{}, err
		}
	}
	return begun, emitRevoked(excess, e.accountID, now, emit)
}

// rehash brings a stored password to the present cost. The log in has succeeded already: a failure waits
// for the next one.
func (s *Service) rehash(ctx context.Context, row db.AccountCredentialsRow, password string) {
	hash, err := s.passwords.hash(ctx, password)
	if err == nil {
		err = db.New(s.pool).AccountRehash(ctx, db.AccountRehashParams{ID: row.ID, OldHash: row.PasswordHash, NewHash: hash})
	}
	if err != nil {
		s.log.WarnContext(ctx, "a password keeps its old cost", "account_id", row.ID, "error", err)
	}
}

// confirmPassword checks the password of somebody who is logged in, before what a stolen session must not be
// able to do. It counts like a log-in. It returns the state that was checked, for lockChecked.
func (s *Service) confirmPassword(ctx context.Context, action string, account uuid.UUID, password string) (db.AccountOwnRow, error) {
	var row db.AccountOwnRow
	err := s.guess(ctx, s.guessesAt(ctx, "password", account), func() error {
		var err error
		row, err = s.ownAccount(ctx, account)
		if err != nil {
			return err
		}
		matches, err := s.passwords.matches(ctx, row.PasswordHash, password)
		if err != nil {
			return err
		}
		if !matches {
			return errCredentials
		}
		return nil
	})
	return row, s.refused(ctx, auditEntry{action: action, account: account}, err)
}

// lockAccount takes the lock that comes before those of an account's sessions, codes and second factor.
// ACCOUNT_NOT_FOUND if it is gone.
func lockAccount(ctx context.Context, queries *db.Queries, account uuid.UUID) (db.AccountForChangeRow, error) {
	row, err := queries.AccountForChange(ctx, account)
	if errors.Is(err, pgx.ErrNoRows) {
		return row, errAccountNotFound
	}
	if err != nil {
		return row, fmt.Errorf("lock account: %w", err)
	}
	return row, nil
}

// lockOwn locks the caller's own account for what a stolen session must not do, and refuses if the session has ended or
// the account is suspended: the token does not know that yet. SESSION_REVOKED for both.
func (s *Service) lockOwn(ctx context.Context, queries *db.Queries, caller identity.Caller) (db.AccountForChangeRow, error) {
	row, err := lockAccount(ctx, queries, caller.UserID)
	if err != nil {
		return row, err
	}
	if suspended(s.clock.Now(), row.SuspendedAt, row.SuspendedUntil) {
		return row, errSessionEnded
	}
	return row, s.sessionLives(ctx, queries, caller)
}

// sessionLives refuses a caller whose session has ended. Asked under the account's lock, it holds until the commit.
func (s *Service) sessionLives(ctx context.Context, queries *db.Queries, caller identity.Caller) error {
	_, err := queries.SessionConfirmed(ctx, db.SessionConfirmedParams{ID: caller.SessionID, AccountID: caller.UserID, Now: s.clock.Now()})
	if errors.Is(err, pgx.ErrNoRows) {
		return errSessionEnded
	}
	if err != nil {
		return fmt.Errorf("select session: %w", err)
	}
	return nil
}

// lockChecked is lockOwn for what proveOwner or confirmPassword has checked: it refuses if the password is another by
// now.
func (s *Service) lockChecked(ctx context.Context, queries *db.Queries, caller identity.Caller, checked db.AccountOwnRow) (db.AccountForChangeRow, error) {
	row, err := s.lockOwn(ctx, queries, caller)
	if err == nil && !sameTime(row.PasswordChangedAt, checked.PasswordChangedAt) {
		err = errCredentials
	}
	return row, err
}

// sameTime compares two times that may be absent. The time of a password's change is its version: a stored
// form alone may be made anew at another cost.
func sameTime(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}
