package mailsink_test

import (
	"fmt"
	"net"
	"net/smtp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/mailsink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o mailsink.Options) *mailsink.Sink {
	t.Helper()
	sink, err := mailsink.Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sink.Stop()) })
	return sink
}

func send(sink *mailsink.Sink, to, body string) error {
	return smtp.SendMail(sink.Addr, nil, "from@example.org", []string{to}, []byte(strings.ReplaceAll(body, "\n", "\r\n")))
}

func TestReadsBothForms(t *testing.T) {
	t.Parallel()
	sink := start(t, mailsink.Options{})
	changed := sink.Changed()
	require.NoError(t, send(sink, "anna@example.org", `Subject: =?UTF-8?q?Gr=C3=BC=C3=9Fe?=
Message-ID: <1@example.org>
Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

na=C3=AFve
--inner
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: base64

PGI+aGk8L2I+
--inner--
--outer--
`))
	<-changed
	mails := sink.Mails()
	require.Len(t, mails, 1)
	m := mails[0]
	require.Equal(t, "Grüße", m.Subject)
	require.Equal(t, "1@example.org", m.MessageID)
	require.Equal(t, "naïve", m.Text)
	require.Equal(t, "<b>hi</b>", m.HTML)
	require.Equal(t, []string{"anna@example.org"}, m.To)
	require.Equal(t, "from@example.org", m.From)
}

func TestKeepsTheLast(t *testing.T) {
	t.Parallel()
	sink := start(t, mailsink.Options{Keep: 3})
	for i := range 5 {
		require.NoError(t, send(sink, "anna@example.org", fmt.Sprintf("Subject: %d\n\nhi\n", i+1)))
	}
	mails := sink.Mails()
	require.Len(t, mails, 3)
	require.Equal(t, "5", mails[0].Subject)
	require.Equal(t, "3", mails[2].Subject)
	_, ok := sink.Mail(2)
	require.False(t, ok)
	fifth, ok := sink.Mail(5)
	require.True(t, ok)
	require.Equal(t, "hi\n", fifth.Text)
	sink.Clear()
	require.Empty(t, sink.Mails())
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	sink := start(t, mailsink.Options{Refuse: func(to string) error {
		if to == "gone@example.org" {
			return mailsink.Refusal(550, "gone")
		}
		return nil
	}})
	require.ErrorContains(t, send(sink, "gone@example.org", "Subject: x\n\nhi\n"), "550")
	require.ErrorContains(t, send(sink, "anna@example.org", "Subject: x\n\n"+strings.Repeat("x\n", mailsink.MaxBytes/2)), "552")
	deep := ""
	for i := range 8 {
		deep += fmt.Sprintf("Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	require.ErrorContains(t, send(sink, "anna@example.org", deep), "554")
	require.Empty(t, sink.Mails())
}

func TestAsksForLogins(t *testing.T) {
	t.Parallel()
	sink := start(t, mailsink.Options{Logins: map[string]string{"parley": "hunter2"}})
	host, _, err := net.SplitHostPort(sink.Addr)
	require.NoError(t, err)
	with := func(password string) error {
		return smtp.SendMail(sink.Addr, smtp.PlainAuth("", "parley", password, host), "from@example.org", []string{"anna@example.org"}, []byte("Subject: x\r\n\r\nhi\r\n"))
	}
	require.ErrorContains(t, send(sink, "anna@example.org", "Subject: x\n\nhi\n"), "502")
	require.ErrorContains(t, with("hunter3"), "535")
	require.NoError(t, with("hunter2"))
	require.Len(t, sink.Mails(), 1)
}
