// Package mail sends the mails of a service: a code, a notice that something has
// changed.
//
// It owns the queue (a JetStream work queue of the service's own), the templates
// and the way to the mail server. Send returns when JetStream has stored the mail;
// a worker renders and delivers it, and tries again for as long as the mail is of
// use: a code until it has expired, a notice for a day.
//
// Invariants: what lies in the queue is sealed with a key of the service, and
// leaves it when it has lost its use; a mail's id goes into its Message-ID, and
// Send with the same id stores one mail. Delivery is at least once: a process that
// dies after the mail server took a mail and before the queue knows has it sent
// once more, with the same Message-ID.
//
// It never logs an address or what a mail says, and it decides nothing: who gets
// which mail is the domain's business.
package mail

import (
	"cmp"
	"fmt"
	netmail "net/mail"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
)

// The templates, and the keys that their data must or may have.
const (
	// VerifyEmail needs username, code, minutes.
	VerifyEmail = "verify_email"
	// ResetPassword needs username, code, minutes.
	ResetPassword = "reset_password"
	// ConfirmAction needs username, action, code, minutes. Action completes
	// "You are about to …".
	ConfirmAction = "confirm_action"
	// EmailChanged needs username, address: the new one, as far as it is to be shown.
	EmailChanged = "email_changed"
	// PasswordChanged needs username, may have device, address (of the network).
	PasswordChanged = "password_changed"
	// NewSecondFactor needs username, may have device, address (of the network).
	NewSecondFactor = "new_second_factor"
	// SecondFactorOff needs username, may have device, address (of the network).
	SecondFactorOff = "second_factor_off"
	// IdentityLinked and IdentityUnlinked need username, provider, may have device,
	// address (of the network).
	IdentityLinked   = "identity_linked"
	IdentityUnlinked = "identity_unlinked"
	// AccountSuspended needs username, may have reason, until.
	AccountSuspended = "account_suspended"
	// RecoveryCodeUsed needs username, left: how many codes there still are; may have
	// device, address (of the network).
	RecoveryCodeUsed = "recovery_code_used"
)

// required are the keys without which a template says nothing.
var required = map[string][]string{
	VerifyEmail:      {"username", "code", "minutes"},
	ResetPassword:    {"username", "code", "minutes"},
	ConfirmAction:    {"username", "action", "code", "minutes"},
	EmailChanged:     {"username", "address"},
	PasswordChanged:  {"username"},
	NewSecondFactor:  {"username"},
	SecondFactorOff:  {"username"},
	IdentityLinked:   {"username", "provider"},
	IdentityUnlinked: {"username", "provider"},
	AccountSuspended: {"username"},
	RecoveryCodeUsed: {"username", "left"},
}

const (
	// noticeLife is for how long a mail without a code is worth sending.
	noticeLife = 24 * time.Hour
	// maxMinutes bounds the life of a code.
	maxMinutes = 60

	maxAddress = 254
	maxKeys    = 16
	maxValue   = 512
)

// Message is a mail to one person.
type Message struct {
	// ID makes sending idempotent: the same id is stored once.
	ID uuid.UUID
	// To is the bare address.
	To string
	// Template is one of the constants above.
	Template string
	// Locale is a language tag ("de-AT"); what has no translation is English.
	Locale string
	// Data fills the template. Values longer than 512 bytes are an error; control
	// characters in them are left out.
	Data map[string]string
}

// check tells what is wrong with a message: the caller's mistake, except the
// address, which may be a person's.
func (m Message) check() error {
	keys, known := required[m.Template]
	switch {
	case m.ID == uuid.Nil:
		return fmt.Errorf("mail %s has no id", m.Template)
	case !known:
		return fmt.Errorf("there is no mail template %q", m.Template)
	case len(m.Data) > maxKeys:
		return fmt.Errorf("mail %s has %d values, more than %d", m.Template, len(m.Data), maxKeys)
	}
	for _, key := range keys {
		if m.Data[key] == "" {
			return fmt.Errorf("mail %s lacks its %s", m.Template, key)
		}
	}
	for key, value := range m.Data {
		if len(value) > maxValue {
			return fmt.Errorf("mail %s: %s has %d bytes, more than %d", m.Template, key, len(value), maxValue)
		}
	}
	// Nothing of the address in the error: it would end up in a log.
	if !Mailable(m.To) {
		return fmt.Errorf("mail %s: the recipient is no address", m.Template)
	}
	_, err := m.life()
	return err
}

// Mailable tells whether a mail can be sent to an address: bare, in ASCII, at a
// domain, without the quotes and literals of RFC 5322 that no mailbox of a person's
// has. The rules of form for addresses elsewhere are wider ("a..b@example.org");
// whoever takes an address from somebody asks here before it is stored.
func Mailable(address string) bool {
	a, err := netmail.ParseAddress(address)
	return err == nil && a.Address == address && len(address) <= maxAddress && bare(address)
}

func bare(address string) bool {
	for _, r := range address {
		if r <= ' ' || r > '~' || r == '"' || r == '[' {
			return false
		}
	}
	return true
}

// life is for how long the mail is of use.
func (m Message) life() (time.Duration, error) {
	text, ok := m.Data["minutes"]
	if !ok {
		return noticeLife, nil
	}
	minutes, err := strconv.Atoi(text)
	if err != nil || minutes < 1 || minutes > maxMinutes {
		return 0, fmt.Errorf("mail %s: minutes are not between 1 and %d", m.Template, maxMinutes)
	}
	return time.Duration(minutes) * time.Minute, nil
}

// clean is the data as templates get it: without what could break a line of a
// header or hide text, names and devices being what people typed.
func (m Message) clean(product string) map[string]string {
	data := map[string]string{"product": cmp.Or(product, "Parley")}
	for key, value := range m.Data {
		data[key] = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				return -1
			}
			return r
		}, strings.ToValidUTF8(value, ""))
	}
	return data
}
