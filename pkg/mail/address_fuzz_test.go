package mail

import (
	"bytes"
	netmail "net/mail"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestMailable(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"anna@example.org", "a.b+c@mail.example.org", "o'neil_x@example.org"} {
		require.True(t, Mailable(good), good)
	}
	for _, bad := range []string{
		"", "anna", "a..b@example.org", ".a@example.org", "a.@example.org", "Anna <anna@example.org>", `"a b"@example.org`,
		"anna@[192.0.2.7]", "\u00e4nna@example.org", "anna@ex\u00e4mple.org", " anna@example.org", "anna@example.org\r\nBcc: b@example.org",
	} {
		require.False(t, Mailable(bad), bad)
	}
}

// What Mailable accepts is no error later: it is stored in the queue, and comes out of the mail's own header as it was.
func FuzzMailable(f *testing.F) {
	for _, seed := range []string{
		"anna@example.org", "a..b@example.org", ".a@example.org", "a@[192.0.2.7]", `"a"@example.org`, "a@b", "a@-.-", "!#$%&'*+/=?^_`{|}~-@x",
	} {
		f.Add(seed)
	}
	out, err := newTransport(Settings{From: "parley@example.org"})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, address string) {
		if !Mailable(address) {
			return
		}
		m := Message{ID: uuid.Must(uuid.NewV7()), To: address, Template: PasswordChanged, Data: map[string]string{"username": "anna"}}
		require.NoError(t, m.check())
		raw, err := out.compose(m.ID, m.To, time.Unix(0, 0), rendered{subject: "s", text: "t", html: "h"})
		require.NoError(t, err)
		sent, err := netmail.ReadMessage(bytes.NewReader(raw))
		require.NoError(t, err)
		to, err := sent.Header.AddressList("To")
		require.NoError(t, err)
		require.Len(t, to, 1)
		require.Equal(t, address, to[0].Address)
	})
}
