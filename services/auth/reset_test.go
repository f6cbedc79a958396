package auth_test

import (
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

func TestResetPassword(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anonymous := authv1connect.NewAccountServiceClient(h.Dial("auth", h.Anonymous()))
	request := func(t *testing.T, login string) error {
		t.Helper()
		_, err := anonymous.RequestPasswordReset(t.Context(), &authv1.RequestPasswordResetRequest{Login: login})
		return err
	}
	reset := func(t *testing.T, login, code, next string) error {
		t.Helper()
		_, err := anonymous.ResetPassword(t.Context(), &authv1.ResetPasswordRequest{Login: login, Code: code, NewPassword: next})
		return err
	}

	t.Run("ByMail", func(t *testing.T) {
		t.Parallel()
		anna := newcomer(t, h, client, "anna")
		mailedCode(t, h, "anna@example.org")
		require.NoError(t, request(t, "ANNA"))
		code := mailedCode(t, h, "anna@example.org")
		requireReason(t, reset(t, "anna", code, "password1"), connect.CodeInvalidArgument, errorv1.Reason_REASON_PASSWORD_WEAK)
		require.NoError(t, reset(t, "anna@example.org", code, nextPassword))
		anna.ended(t)
		_, err := logIn(t.Context(), client, "anna", password)
		wrongPassword(t, err)
		later := again(t, h, client, "anna", nextPassword)
		require.Contains(t, h.Mail.Next("anna@example.org").Subject, "password")
		invalidCode(t, reset(t, "anna", code, password))
		own, err := later.account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
		require.NoError(t, err)
		require.NotNil(t, own.GetEmailVerifiedAt(), "whoever read the code has the mailbox")
		later.recorded(t, "password.reset_requested", "")
		later.recorded(t, "password.reset", "")
		later.recorded(t, "password.reset", "CODE_INVALID")
	})
	t.Run("AnswersTheSameForAnUnknownAccount", func(t *testing.T) {
		t.Parallel()
		newcomer(t, h, client, "berta")
		mailedCode(t, h, "berta@example.org")
		require.NoError(t, request(t, "berta"))
		require.NoError(t, request(t, "nobody-at-all"))
		known := reset(t, "berta", wrongCode(mailedCode(t, h, "berta@example.org")), nextPassword)
		unknown := reset(t, "nobody-at-all", "12345678", nextPassword)
		invalidCode(t, known)
		require.Equal(t, known.Error(), unknown.Error())
		require.Equal(t, rpc.InfoOf(known).String(), rpc.InfoOf(unknown).String())
	})
	t.Run("LimitsAreTheSameForAnUnknownAccount", func(t *testing.T) {
		t.Parallel()
		newcomer(t, h, client, "cleo")
		for _, login := range []string{"cleo", "nobody-here"} {
			limitedAfterFive(t, fine, func() error { return request(t, login) })
			limitedAfterFive(t, invalidCode, func() error { return reset(t, login, "00000000", nextPassword) })
		}
	})
	t.Run("OneCodeIsGoodOnce", func(t *testing.T) {
		t.Parallel()
		newcomer(t, h, client, "doro")
		mailedCode(t, h, "doro@example.org")
		require.NoError(t, request(t, "doro"))
		code := mailedCode(t, h, "doro@example.org")
		errs := make([]error, 4)
		var group sync.WaitGroup
		for i := range errs {
			group.Go(func() {
				_, errs[i] = anonymous.ResetPassword(t.Context(), &authv1.ResetPasswordRequest{Login: "doro", Code: code, NewPassword: nextPassword})
			})
		}
		group.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			}
		}
		require.Equal(t, 1, won, "%v", errs)
	})
}

// A stranger who asks for resets neither takes the code away that its owner is typing, nor the mails of other kinds.
func TestStrangersDoNotVoidACode(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna := newcomer(t, h, client, "anna")
	mailedCode(t, h, "anna@example.org")
	request := func(login string) {
		t.Helper()
		_, err := anna.account.RequestPasswordReset(t.Context(), &authv1.RequestPasswordResetRequest{Login: login})
		require.NoError(t, err)
	}
	request("anna")
	code := mailedCode(t, h, "anna@example.org")
	request("anna@example.org") // answered the same, and nothing comes of it
	// Later it is replaced; the requests are served in their order.
	h.Clock.Advance(time.Minute)
	request("anna")
	later := mailedCode(t, h, "anna@example.org")
	require.NotEqual(t, code, later)
	for range 2 {
		h.Clock.Advance(time.Minute)
		request("anna")
		later = mailedCode(t, h, "anna@example.org")
	}
	// All five are used up by now, for resets alone.
	require.NoError(t, sendVerification(t, anna))
	mailedCode(t, h, "anna@example.org")
	_, err := anna.account.ResetPassword(t.Context(), &authv1.ResetPasswordRequest{Login: "anna", Code: later, NewPassword: nextPassword})
	require.NoError(t, err)
}

func TestAYoungCodeIsStillGood(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	anna, berta := newcomer(t, h, client, "anna"), newcomer(t, h, client, "berta")
	mailedCode(t, h, "anna@example.org")
	mailedCode(t, h, "berta@example.org")
	for _, login := range []string{"anna", "anna", "berta"} {
		_, err := anna.account.RequestPasswordReset(t.Context(), &authv1.RequestPasswordResetRequest{Login: login})
		require.NoError(t, err)
	}
	mailedCode(t, h, "berta@example.org") // the requests before it are served
	_, err := berta.account.ResetPassword(t.Context(), &authv1.ResetPasswordRequest{
		Login: "anna", Code: mailedCode(t, h, "anna@example.org"), NewPassword: nextPassword,
	})
	require.NoError(t, err)
}
