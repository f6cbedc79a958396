package mail

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/textproto"
	"strings"
	"time"

	"github.com/google/uuid"
	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// transport brings mails to the mail server, over a connection for each: mails of
// a chat are few, and a connection that is kept is one that has died when needed.
type transport struct {
	settings Settings
	from     *netmail.Address
	tls      *tls.Config
}

func newTransport(s Settings) (*transport, error) {
	from, err := netmail.ParseAddress(s.From)
	if err != nil {
		return nil, fmt.Errorf("the sender of mails is no address: %w", err)
	}
	cfg, err := s.tlsConfig()
	if err != nil {
		return nil, fmt.Errorf("authorities of the mail server: %w", err)
	}
	return &transport{settings: s, from: from, tls: cfg}, nil
}

// refusedError is an answer of the mail server that will not change. It holds the
// code only: the text of the answer often repeats the address.
type refusedError struct{ code int }

func (e refusedError) Error() string {
	return fmt.Sprintf("the mail server refuses it with code %d", e.code)
}

// domain is that of the sender, for the Message-ID and the greeting.
func (t *transport) domain() string {
	_, domain, _ := strings.Cut(t.from.Address, "@")
	return domain
}

// compose writes the mail down as the server gets it.
func (t *transport) compose(id uuid.UUID, to string, at time.Time, r rendered) ([]byte, error) {
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	m.FromMailAddress(t.from)
	m.ToMailAddress(&netmail.Address{Address: to})
	m.Subject(r.subject)
	m.SetMessageIDWithValue(id.String() + "@" + t.domain())
	m.SetDateWithValue(at)
	// RFC 3834: nobody's holiday answer is wanted.
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	m.SetGenHeader("X-Auto-Response-Suppress", "All")
	m.SetBodyString(gomail.TypeTextPlain, r.text)
	m.AddAlternativeString(gomail.TypeTextHTML, r.html)
	var out bytes.Buffer
	if _, err := m.WriteTo(&out); err != nil {
		return nil, fmt.Errorf("write down the mail: %w", err)
	}
	return out.Bytes(), nil
}

// deliver hands the mail to the server, within the timeout of the settings. A
// refusedError is for good, every other error may pass: also a refused password,
// which the operator can mend while the mail waits. Errors hold no address.
func (t *transport) deliver(ctx context.Context, to string, raw []byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.settings.Timeout)
	defer cancel()
	conn, err := t.dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to the mail server: %w", err)
	}
	defer conn.Close()
	// Whatever the conversation waits for, the end of ctx ends it.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client, err := t.greet(conn)
	if err != nil {
		return fmt.Errorf("greet the mail server: %w", plain(err))
	}
	if err := transact(client, t.from.Address, to, raw); err != nil {
		return err
	}
	// It has the mail: how the conversation ends changes nothing.
	_ = client.Quit()
	return nil
}

func (t *transport) dial(ctx context.Context) (net.Conn, error) {
	plain := &net.Dialer{}
	if t.settings.Security == securityTLS {
		return (&tls.Dialer{NetDialer: plain, Config: t.tls}).DialContext(ctx, "tcp", t.settings.address())
	}
	return plain.DialContext(ctx, "tcp", t.settings.address())
}

// greet makes the connection safe and logs in.
func (t *transport) greet(conn net.Conn) (*smtp.Client, error) {
	s := t.settings
	client, err := smtp.NewClient(conn, s.Host)
	if err != nil {
		return nil, err
	}
	hello := s.Hello
	if hello == "" {
		hello = t.domain()
	}
	if err := client.Hello(hello); err != nil {
		return nil, err
	}
	if s.Security != securityTLS && s.Security != securityNone {
		if ok, _ := client.Extension("STARTTLS"); !ok {
			return nil, errors.New("it does not offer STARTTLS")
		}
		if err := client.StartTLS(t.tls); err != nil {
			return nil, err
		}
	}
	if s.User == "" {
		return client, nil
	}
	_, offered := client.Extension("AUTH")
	auth := smtp.PlainAuth("", s.User, s.Password, s.Host, false)
	if mechanisms := strings.Fields(offered); !contains(mechanisms, "PLAIN") && contains(mechanisms, "LOGIN") {
		auth = smtp.LoginAuth(s.User, s.Password, s.Host, false)
	}
	if err := client.Auth(auth); err != nil {
		return nil, err
	}
	return client, nil
}

func contains(list []string, word string) bool {
	for _, w := range list {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

// transact is one mail. A refusal of the sender is about our settings, not about
// the mail, so it is never for good.
func transact(client *smtp.Client, from, to string, raw []byte) error {
	if err := client.Mail(from); err != nil {
		return fmt.Errorf("name the sender: %w", plain(err))
	}
	if err := client.Rcpt(to); err != nil {
		return fmt.Errorf("name the recipient: %w", judged(err))
	}
	body, err := client.Data()
	if err != nil {
		return fmt.Errorf("begin the mail: %w", judged(err))
	}
	_, err = body.Write(raw)
	if err == nil {
		// The answer to the final dot: from here on the server has the mail, or not.
		err = body.Close()
	}
	if err != nil {
		return fmt.Errorf("hand over the mail: %w", judged(err))
	}
	return nil
}

// judged tells refusals that last (5xx) from what may pass, without the server's words.
func judged(err error) error {
	if answer, ok := errors.AsType[*textproto.Error](err); ok && answer.Code >= 500 {
		return refusedError{answer.Code}
	}
	return plain(err)
}

// plain takes the server's words out of an error, its code stays.
func plain(err error) error {
	if answer, ok := errors.AsType[*textproto.Error](err); ok {
		return fmt.Errorf("the mail server answers with code %d", answer.Code)
	}
	return err
}
