package auth

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"
	"github.com/pquerna/otp/totp"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/services/auth/internal/db"
)

const (
	// totpPeriod and totpDigits are what authenticator apps take for granted (RFC 6238, with SHA-1).
	totpPeriod = 30
	totpDigits = otp.DigitsSix
	// totpSkew is how many steps a device's clock may be off, either way (RFC 6238, section 5.2).
	totpSkew = 1
	// totpSecretBytes is the length that RFC 4226 recommends.
	totpSecretBytes = 20

	recoveryCodes = 10
	// recoveryBytes make 50 bits in ten letters of base32.
	recoveryLetters = 10
)

// newSecret makes a secret for an authenticator app.
func newSecret(issuer, username string) (*otp.Key, error) {
	key, err := totp.Generate(totp.GenerateOpts{
		Issuer: issuer, AccountName: username, Period: totpPeriod, SecretSize: totpSecretBytes,
		Digits: totpDigits, Algorithm: otp.AlgorithmSHA1, Rand: rand.Reader,
	})
	if err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	return key, nil
}

// matchStep finds the time step for which a code is right, near now.
func matchStep(secret, code string, now time.Time) (step int64, ok bool, err error) {
	current := now.Unix() / totpPeriod
	for at := current - totpSkew; at <= current+totpSkew; at++ {
		want, err := hotp.GenerateCodeCustom(secret, uint64(at), hotp.ValidateOpts{Digits: totpDigits, Algorithm: otp.AlgorithmSHA1})
		if err != nil {
			return 0, false, fmt.Errorf("compute a code: %w", err)
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			step, ok = at, true
		}
	}
	return step, ok, nil
}

// factorSealer keeps secrets of second factors: AES-256-GCM under PARLEY_AUTH_KEY_ENCRYPTION_KEY, bound to their
// account, so that rows cannot be exchanged for one another.
type factorSealer struct{ aead cipher.AEAD }

func (f factorSealer) seal(account uuid.UUID, secret string) []byte {
	return f.aead.Seal(nil, nil, []byte(secret), factorContext(account)) //nolint:gosec // this AEAD makes its own random nonce
}

func (f factorSealer) open(account uuid.UUID, sealed []byte) (string, error) {
	secret, err := f.aead.Open(nil, nil, sealed, factorContext(account))
	if err != nil {
		return "", fmt.Errorf("open the second factor of %s: PARLEY_AUTH_KEY_ENCRYPTION_KEY is not the one that it was sealed with: %w", account, err)
	}
	return string(secret), nil
}

func factorContext(account uuid.UUID) []byte { return append([]byte("second factor "), account[:]...) }

// tidyCode takes out what people type between letters: an app's code is shown as "123 456", ours as "abcde-fghij".
func tidyCode(code string) string {
	return strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(code))
}

// What a second factor was proved by, for the record.
const (
	byApp          = "second factor"
	byRecoveryCode = "recovery code"
	byMailedCode   = "mailed code"
)

// spendFactor checks a code of the app or a recovery code of an account, and spends it, in the transaction of what
// it was asked for. It tells which it was. SECOND_FACTOR_INVALID for one that is wrong or spent.
func (s *Service) spendFactor(ctx context.Context, queries *db.Queries, of recipient, code string) (by string, err error) {
	row, err := queries.SecondFactorOf(ctx, of.id)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && row.ConfirmedAt == nil {
		return byApp, errFactorInvalid // it was turned off meanwhile
	}
	if err != nil {
		return "", fmt.Errorf("select second factor: %w", err)
	}
	code = tidyCode(code)
	if len(code) == totpDigits.Length() {
		return byApp, s.spendStep(ctx, queries, of.id, row.SealedSecret, code)
	}
	return byRecoveryCode, s.spendRecoveryCode(ctx, queries, of, code)
}

func (s *Service) spendStep(ctx context.Context, queries *db.Queries, account uuid.UUID, sealed []byte, code string) error {
	secret, err := s.factors.open(account, sealed)
	if err != nil {
		return err
	}
	step, ok, err := matchStep(secret, code, s.clock.Now())
	if err != nil {
		return err
	}
	if !ok {
		return errFactorInvalid
	}
	// A step is spent with all before it: a code that was looked at is of no use after its owner's.
	spent, err := queries.SecondFactorSpend(ctx, db.SecondFactorSpendParams{Step: step, AccountID: account})
	if err != nil {
		return fmt.Errorf("spend a step: %w", err)
	}
	if spent == 0 {
		return errFactorInvalid
	}
	return nil
}

// spendRecoveryCode tells the person by mail: such codes lie in a drawer, and their use is rare or a theft.
func (s *Service) spendRecoveryCode(ctx context.Context, queries *db.Queries, of recipient, code string) error {
	spent, err := queries.RecoveryCodeUse(ctx, db.RecoveryCodeUseParams{AccountID: of.id, CodeHash: s.recoveryHash(of.id, code)})
	if err != nil {
		return fmt.Errorf("use a recovery code: %w", err)
	}
	if spent == 0 {
		return errFactorInvalid
	}
	left, err := queries.RecoveryCodesLeft(ctx, of.id)
	if err != nil {
		return fmt.Errorf("count recovery codes: %w", err)
	}
	data := s.callOrigin(ctx)
	data["left"] = strconv.Itoa(int(left))
	return s.notice(ctx, queries, of, mail.RecoveryCodeUsed, data)
}

// newRecoveryCodes replaces the recovery codes of an account and returns them, this once.
func (s *Service) newRecoveryCodes(ctx context.Context, queries *db.Queries, account uuid.UUID) ([]string, error) {
	if err := queries.RecoveryCodesDelete(ctx, account); err != nil {
		return nil, fmt.Errorf("delete recovery codes: %w", err)
	}
	var shown []string
	var hashes [][]byte
	for range recoveryCodes {
		code := strings.ToLower(rand.Text()[:recoveryLetters])
		shown = append(shown, code[:recoveryLetters/2]+"-"+code[recoveryLetters/2:])
		hashes = append(hashes, s.recoveryHash(account, code))
	}
	if err := queries.RecoveryCodesPut(ctx, db.RecoveryCodesPutParams{AccountID: account, CodeHashes: hashes}); err != nil {
		return nil, fmt.Errorf("insert recovery codes: %w", err)
	}
	return shown, nil
}

func (s *Service) recoveryHash(account uuid.UUID, code string) []byte {
	return s.secrets.hash("recovery", account, uuid.Nil, code)
}

// secondFactorOn says whether log-ins of an account need one.
func secondFactorOn(ctx context.Context, queries *db.Queries, account uuid.UUID) (bool, error) {
	_, err := queries.SecondFactorStatus(ctx, account)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("select second factor: %w", err)
	}
	return true, nil
}

// newChallengeToken makes the secret that stands for a log-in whose password was right: 130 bits.
func newChallengeToken() string { return challengePrefix + rand.Text() }

// challengePrefix makes the tokens easy to find for secret scanners.
const challengePrefix = "plc_"
