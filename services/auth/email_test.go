package auth_test

import (
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func verifyEmail(t *testing.T, p *someone, code string) error {
	t.Helper()
	_, err := p.account.VerifyEmail(t.Context(), &authv1.VerifyEmailRequest{Code: code})
	return err
}

func sendVerification(t *testing.T, p *someone) error {
	t.Helper()
	_, err := p.account.SendEmailVerification(t.Context(), &authv1.SendEmailVerificationRequest{})
	return err
}

func TestVerifyEmail(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	verified := func(t *testing.T, p *someone) bool {
		t.Helper()
		own, err := p.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
		require.NoError(t, err)
		return own.GetEmailVerifiedAt() != nil
	}

	t.Run("ByTheCodeOfTheRegistration", func(t *testing.T) {
		t.Parallel()
		anna := newcomer(t, h, client, "anna")
		code := mailedCode(t, h, "anna@example.org")
		require.False(t, verified(t, anna))
		invalidCode(t, verifyEmail(t, anna, wrongCode(code)))
		require.NoError(t, verifyEmail(t, anna, code))
		require.True(t, verified(t, anna))
		require.NoError(t, verifyEmail(t, anna, code), "idempotent")
		requireReason(t, sendVerification(t, anna), connect.CodeFailedPrecondition, errorv1.Reason_REASON_EMAIL_VERIFIED_ALREADY)
		anna.recorded(t, "email.verified", "CODE_INVALID")
		anna.recorded(t, "email.verified", "")
	})
	t.Run("ANewCodeVoidsTheOneBefore", func(t *testing.T) {
		t.Parallel()
		berta := newcomer(t, h, client, "berta")
		first := mailedCode(t, h, "berta@example.org")
		require.NoError(t, sendVerification(t, berta))
		second := mailedCode(t, h, "berta@example.org")
		invalidCode(t, verifyEmail(t, berta, first))
		require.NoError(t, verifyEmail(t, berta, second))
	})
	t.Run("IsNobodyElses", func(t *testing.T) {
		t.Parallel()
		cleo, doro := newcomer(t, h, client, "cleo"), newcomer(t, h, client, "doro")
		invalidCode(t, verifyEmail(t, doro, mailedCode(t, h, "cleo@example.org")))
		require.False(t, verified(t, cleo))
	})
	t.Run("StoresNoCode", func(t *testing.T) {
		t.Parallel()
		emil := newcomer(t, h, client, "emil")
		code := mailedCode(t, h, "emil@example.org")
		var row string
		require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT one_time_code::text FROM one_time_code WHERE account_id = $1", emil.id).Scan(&row))
		require.NotContains(t, row, code)
	})
	t.Run("MailsAreLimited", func(t *testing.T) {
		t.Parallel()
		fritz := newcomer(t, h, client, "fritz")
		mailedCode(t, h, "fritz@example.org")
		sent := 1 // the registration's
		for ; sent <= 8; sent++ {
			if err := sendVerification(t, fritz); err != nil {
				requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
				break
			}
		}
		require.LessOrEqual(t, sent, 7)
		require.GreaterOrEqual(t, sent, 5)
	})
}

func TestCodesAreTriedFiveTimes(t *testing.T) {
	t.Parallel()
	// Without the limits of account and address, so that the code's own is seen.
	h, client := withMail(t, "PARLEY_AUTH_LOGIN_LIMIT=0", "PARLEY_AUTH_LOGIN_ADDRESS_LIMIT=0")
	anna := newcomer(t, h, client, "anna")
	code := mailedCode(t, h, "anna@example.org")
	for range 5 {
		invalidCode(t, verifyEmail(t, anna, wrongCode(code)))
	}
	invalidCode(t, verifyEmail(t, anna, code))
	require.NoError(t, sendVerification(t, anna))
	require.NoError(t, verifyEmail(t, anna, mailedCode(t, h, "anna@example.org")))
}

func TestGuessingCodesIsLimitedPerAccount(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna := newcomer(t, h, client, "anna")
	code := mailedCode(t, h, "anna@example.org")
	limitedAfterFive(t, invalidCode, func() error { return verifyEmail(t, anna, wrongCode(code)) })
	// A new code is no way around it.
	require.NoError(t, sendVerification(t, anna))
	requireReason(t, verifyEmail(t, anna, mailedCode(t, h, "anna@example.org")), connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
}

func TestCodesExpire(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna := newcomer(t, h, client, "anna")
	code := mailedCode(t, h, "anna@example.org")
	h.Clock.Advance(10 * time.Minute)
	tokens, err := refresh(t.Context(), client, anna.tokens.GetRefreshToken())
	require.NoError(t, err)
	invalidCode(t, verifyEmail(t, logged(h, anna.id, tokens), code))
}

func TestChangeEmail(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	begin := func(t *testing.T, p *someone, to string) error {
		t.Helper()
		_, err := p.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: to})
		return err
	}
	confirm := func(t *testing.T, p *someone, code string) (*authv1.ConfirmEmailChangeResponse, error) {
		t.Helper()
		return p.account.ConfirmEmailChange(t.Context(), &authv1.ConfirmEmailChangeRequest{Code: code})
	}

	t.Run("TakesTheNewAddressByItsCode", func(t *testing.T) {
		t.Parallel()
		anna := newcomer(t, h, client, "anna")
		other := again(t, h, client, "anna", password)
		mailedCode(t, h, "anna@example.org")
		require.NoError(t, begin(t, anna, "Anna@Home.example.org"))
		code := mailedCode(t, h, "anna@home.example.org")
		_, err := confirm(t, anna, wrongCode(code))
		invalidCode(t, err)
		other.lives(t)
		res, err := confirm(t, anna, code)
		require.NoError(t, err)
		require.Equal(t, "Anna@Home.example.org", res.GetEmail())
		require.EqualValues(t, 1, res.GetRevokedSessions())
		other.ended(t)
		anna.lives(t)
		told := h.Mail.Next("anna@example.org")
		require.Contains(t, told.Text, "A***@Home.example.org")
		require.NotContains(t, told.Text, "Anna@Home")
		_, err = logIn(t.Context(), client, "anna@example.org", password)
		wrongPassword(t, err)
		again(t, h, client, "anna@home.example.org", password)
		own, err := anna.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
		require.NoError(t, err)
		require.NotNil(t, own.GetEmailVerifiedAt())
		_, err = confirm(t, anna, code)
		invalidCode(t, err)
		anna.recorded(t, "email.changed", "")
	})
	t.Run("NeedsThePassword", func(t *testing.T) {
		t.Parallel()
		berta := newcomer(t, h, client, "berta")
		_, err := berta.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: "not-the-password", NewEmail: "b@example.org"})
		wrongPassword(t, err)
	})
	t.Run("ATakenAddressIsToldToItsOwnerOnly", func(t *testing.T) {
		t.Parallel()
		cleo := newcomer(t, h, client, "cleo")
		newcomer(t, h, client, "doro")
		mailedCode(t, h, "doro@example.org")
		require.NoError(t, begin(t, cleo, "DORO@example.org"), "the same answer as for a free one")
		_, err := confirm(t, cleo, mailedCode(t, h, "doro@example.org"))
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_EMAIL_TAKEN)
		again(t, h, client, "cleo@example.org", password)
	})
	t.Run("AMailboxIsNotFilledByManyAccounts", func(t *testing.T) {
		t.Parallel()
		n := 0
		limitedAfterFive(t, fine, func() error {
			n++
			return begin(t, newcomer(t, h, client, fmt.Sprintf("many-%d", n)), "victim@example.org")
		})
	})
}

// A refused call has spent nothing of the second factor.
func TestAnEmailChangeThatIsRefusedSpendsNothing(t *testing.T) {
	t.Parallel()
	h, client := withMail(t, "PARLEY_AUTH_CODE_SEND_LIMIT=1")
	anna := newcomer(t, h, client, "anna")
	phone, recovery := enrol(t, h, anna)
	begin := func(code string) error {
		_, err := anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{
			Password: password, NewEmail: "anna@home.example.org", SecondFactorCode: code,
		})
		return err
	}
	require.NoError(t, begin(phone.next(t)))
	require.Equal(t, "a***@home.example.org", anna.recorded(t, "email.change_started", "").GetDetails()["to"])
	requireReason(t, begin(recovery[0]), connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	state, err := anna.factor.GetSecondFactor(t.Context(), &authv1.GetSecondFactorRequest{})
	require.NoError(t, err)
	require.EqualValues(t, 10, state.GetRecoveryCodesLeft())
}

// What no mail can be sent to is refused before anything is done.
func TestAddressesWithoutAMailboxAreRefused(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna := newcomer(t, h, client, "anna")
	for _, address := range []string{"a..b@example.org", ".a@example.org", "a.@example.org"} {
		req := person("berta")
		req.Email = address
		_, err := client.Register(t.Context(), req)
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
		_, err = anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: address})
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	}
}

func TestWithoutAMailServer(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	anna := newcomer(t, h, client, "anna")
	requireReason(t, sendVerification(t, anna), connect.CodeUnavailable, errorv1.Reason_REASON_MAIL_UNAVAILABLE)
	_, err := anna.account.RequestPasswordReset(t.Context(), &authv1.RequestPasswordResetRequest{Login: "anna"})
	requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_MAIL_UNAVAILABLE)
	_, err = changePassword(t, anna, password, nextPassword)
	require.NoError(t, err, "what needs no mail goes on")
	var notices int
	require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT count(*) FROM mail_notice").Scan(&notices))
	require.Zero(t, notices)
}
