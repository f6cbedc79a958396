package auth

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var errCodeInvalid = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_CODE_INVALID,
	"the code is wrong, was used or has expired")

const (
	codeLife   = 10 * time.Minute
	codeTries  = 5
	codeDigits = 8
	// codeYouth is how long a code that a stranger may ask for is not replaced: its owner is typing it.
	codeYouth = time.Minute
)

// purpose is what a one-time code is good for: one live code each per account.
type purpose struct {
	name     string
	template string
	// action completes "You are about to …", for mail.ConfirmAction.
	action string
}

var (
	purposeVerifyEmail     = purpose{name: "verify_email", template: mail.VerifyEmail}
	purposeResetPassword   = purpose{name: "reset_password", template: mail.ResetPassword}
	purposeChangeEmail     = purpose{name: "change_email", template: mail.ConfirmAction, action: "make this the e-mail address of your account"}
	purposeDisableFactor   = purpose{name: "disable_second_factor", template: mail.ConfirmAction, action: "turn off the second factor of your account"}
	purposeRenewRecoveries = purpose{name: "renew_recovery_codes", template: mail.ConfirmAction, action: "make new recovery codes for your account"}
)

// ownPurposes are those that belong to an account and not to a session of it.
var ownPurposes = []string{purposeVerifyEmail.name, purposeResetPassword.name}

// secretHasher hashes what is too short to be hashed without a key: codes of eight digits, recovery codes. Whoever
// reads the database alone cannot try them out.
type secretHasher struct{ key []byte }

// newSecretHasher derives its key, so that the key encryption key serves one purpose only.
func newSecretHasher(keyEncryptionKey []byte) (secretHasher, error) {
	key, err := hkdf.Key(sha256.New, keyEncryptionKey, nil, "parley one-time codes", sha256.Size)
	if err != nil {
		return secretHasher{}, fmt.Errorf("derive the key of one-time codes: %w", err)
	}
	return secretHasher{key}, nil
}

// hash binds a secret to its purpose, account and id; each has its length before it, or a fixed one.
func (h secretHasher) hash(purpose string, account, id uuid.UUID, secret string) []byte {
	mac := hmac.New(sha256.New, h.key)
	_, _ = fmt.Fprintf(mac, "%d:%s", len(purpose), purpose) // a hash takes every write
	mac.Write(account[:])
	mac.Write(id[:])
	mac.Write([]byte(secret))
	return mac.Sum(nil)
}

// newCode makes eight digits by chance.
func newCode() (string, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(100_000_000)) // 10^codeDigits
	if err != nil {
		return "", fmt.Errorf("make a code: %w", err)
	}
	return fmt.Sprintf("%0*d", codeDigits, n.Int64()), nil
}

// recipient is who gets a mail.
type recipient struct {
	id              uuid.UUID
	username, email string
}

// errCodeYoung: nothing is sent, the code before is good. Never told to anybody.
var errCodeYoung = errors.New("the code before is young")

// sendCode stores a new code and hands it to the queue. replace: even if the one before is young.
func (s *Service) sendCode(ctx context.Context, p purpose, to recipient, replace bool) error {
	if !s.mails.Enabled() {
		return mail.ErrUnavailable
	}
	m, err := s.putCode(ctx, db.New(s.pool), p, to, replace)
	if err != nil {
		return err
	}
	return s.handOver(ctx, p, to.id, m)
}

// putCode stores the hash of a new code, which voids the one before, and returns the mail for handOver, after the
// commit. Dying in between leaves a code that nobody has, until the next one.
func (s *Service) putCode(ctx context.Context, queries *db.Queries, p purpose, to recipient, replace bool) (mail.Message, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return mail.Message{}, fmt.Errorf("make a code's id: %w", err)
	}
	code, err := newCode()
	if err != nil {
		return mail.Message{}, err
	}
	now := s.clock.Now()
	row := db.CodePutParams{
		AccountID: to.id, Purpose: p.name, ID: id, CodeHash: s.secrets.hash(p.name, to.id, id, code),
		Email: to.email, CreatedAt: now, ExpiresAt: now.Add(codeLife), KeepAfter: now.Add(-codeYouth), MaxTries: codeTries,
	}
	if replace {
		row.KeepAfter = now.Add(codeLife)
	}
	put, err := queries.CodePut(ctx, row)
	if err != nil {
		return mail.Message{}, fmt.Errorf("store a code: %w", err)
	}
	if put == 0 {
		return mail.Message{}, errCodeYoung
	}
	data := map[string]string{"username": to.username, "code": code, "minutes": strconv.Itoa(int(codeLife.Minutes()))}
	if p.action != "" {
		data["action"] = p.action
	}
	return mail.Message{ID: id, To: to.email, Template: p.template, Data: data}, nil
}

// handOver gives a code's mail to the queue. A code that nobody will read goes: it must not look young.
func (s *Service) handOver(ctx context.Context, p purpose, account uuid.UUID, m mail.Message) error {
	err := s.mails.Send(ctx, m)
	if err == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if _, useErr := db.New(s.pool).CodeUse(ctx, db.CodeUseParams{AccountID: account, Purpose: p.name, ID: m.ID}); useErr != nil {
		s.log.WarnContext(ctx, "a code that was not sent stays", "purpose", p.name, "account_id", account, "error", useErr)
	}
	return err
}

// ticket is a code that was right. It is good only once used, in the transaction of what it was asked for.
type ticket struct {
	account uuid.UUID
	purpose string
	id      uuid.UUID
	// email is where the code was sent: what it proves.
	email string
}

// checkCode takes one of the code's tries and compares. The try is committed before the comparison, so that neither
// a crash nor many guesses at once make more of them. An account that is not there (the zero id) takes the same way.
func (s *Service) checkCode(ctx context.Context, p purpose, account uuid.UUID, code string) (ticket, error) {
	row, err := db.New(s.pool).CodeTry(ctx, db.CodeTryParams{AccountID: account, Purpose: p.name, Now: s.clock.Now(), MaxTries: codeTries})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return ticket{}, fmt.Errorf("try a code: %w", err)
	}
	// Without a row the stored hash is empty and equals nothing.
	if !hmac.Equal(row.CodeHash, s.secrets.hash(p.name, account, row.ID, code)) {
		return ticket{}, errCodeInvalid
	}
	return ticket{account: account, purpose: p.name, id: row.ID, email: row.Email}, nil
}

// spend uses the code up. Of two calls with the same code one gets it.
func (t ticket) spend(ctx context.Context, queries *db.Queries) error {
	used, err := queries.CodeUse(ctx, db.CodeUseParams{AccountID: t.account, Purpose: t.purpose, ID: t.id})
	if err != nil {
		return fmt.Errorf("use a code: %w", err)
	}
	if used == 0 {
		return errCodeInvalid
	}
	return nil
}

// spendAt is spend for a code that has to have gone to the account's present address: one that was stored a moment
// after a change of address is its old mailbox's.
func (t ticket) spendAt(ctx context.Context, queries *db.Queries, present string) error {
	if t.email != present {
		return errCodeInvalid
	}
	return t.spend(ctx, queries)
}

// countSend counts a mail that somebody asks for, by the account, by where the call comes from and by where the
// mail goes: nobody's mailbox is filled by many accounts. Each kind by itself: what strangers ask for leaves the rest.
func (s *Service) countSend(ctx context.Context, p purpose, account, email string) error {
	subjects := append(s.addressSubject(ctx, "mail", s.codeSendAddressLimit),
		hashedSubject("mail:"+p.name+":account:", account, s.codeSendLimit))
	if email != "" {
		subjects = append(subjects, hashedSubject("mail:"+p.name+":to:", nameKey(email), s.codeSendLimit))
	}
	return s.attempts.count(ctx, subjects...)
}

// pruneCodes deletes what has expired.
func (s *Service) pruneCodes(ctx context.Context) error {
	queries, now := db.New(s.pool), s.clock.Now()
	codes := prune(func() (int64, error) {
		return queries.CodesPrune(ctx, db.CodesPruneParams{Now: now, Batch: pruneBatch})
	})
	challenges := prune(func() (int64, error) {
		return queries.ChallengesPrune(ctx, db.ChallengesPruneParams{Now: now, Batch: pruneBatch})
	})
	return errors.Join(codes, challenges)
}
