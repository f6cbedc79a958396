package mail_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/mailsink"
)

// update writes what mails look like now: go test ./mail -run Golden -update.
var update = flag.Bool("update", false, "rewrite the golden files")

// Every mail with all that it can say, and once with the least.
func TestGoldenMails(t *testing.T) {
	t.Parallel()
	p := open(t, mailsink.Options{}, nil)
	for name, m := range map[string]mail.Message{
		"verify_email":           {Template: mail.VerifyEmail, Data: map[string]string{"username": "anna", "code": "482913", "minutes": "10"}},
		"reset_password":         {Template: mail.ResetPassword, Data: map[string]string{"username": "anna", "code": "482913", "minutes": "10"}},
		"confirm_action":         {Template: mail.ConfirmAction, Data: map[string]string{"username": "anna", "action": "remove the second factor", "code": "482913", "minutes": "10"}},
		"email_changed":          {Template: mail.EmailChanged, Data: map[string]string{"username": "anna", "address": "a***@example.net"}},
		"password_changed":       {Template: mail.PasswordChanged, Data: map[string]string{"username": "anna", "device": "Anna's laptop", "address": "192.0.2.7"}},
		"password_changed_bare":  {Template: mail.PasswordChanged, Data: map[string]string{"username": "anna"}},
		"second_factor_off":      {Template: mail.SecondFactorOff, Data: map[string]string{"username": "anna", "address": "192.0.2.7"}},
		"identity_linked":        {Template: mail.IdentityLinked, Data: map[string]string{"username": "anna", "provider": "Google", "address": "192.0.2.7"}},
		"identity_unlinked":      {Template: mail.IdentityUnlinked, Data: map[string]string{"username": "anna", "provider": "Google"}},
		"new_second_factor":      {Template: mail.NewSecondFactor, Data: map[string]string{"username": "anna", "address": "192.0.2.7"}},
		"account_suspended":      {Template: mail.AccountSuspended, Data: map[string]string{"username": "anna", "reason": "spam in many groups", "until": "2026-04-01"}},
		"account_suspended_bare": {Template: mail.AccountSuspended, Data: map[string]string{"username": "anna"}},
		"recovery_code_used":     {Template: mail.RecoveryCodeUsed, Data: map[string]string{"username": "anna", "left": "9", "device": "Firefox on Linux", "address": "192.0.2.7"}},
		// What people type must neither break a header nor become markup.
		"hostile": {Template: mail.RecoveryCodeUsed, Locale: "xx-YY", Data: map[string]string{
			"left": "9", "username": "a\r\nBcc: x@example.org", "device": `<a href="https://evil.example">click</a>` + "\u202e", "address": "192.0.2.7",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m.ID, m.To = uuid.Must(uuid.NewV7()), name+"@example.org"
			p.send(m)
			got := p.inbox.Next(m.To)
			golden(t, name+".txt", fmt.Sprintf("Subject: %s\n\n%s", got.Subject, got.Text))
			golden(t, name+".html", got.HTML)
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "write it with -update")
	require.Equal(t, string(want), got)
}
