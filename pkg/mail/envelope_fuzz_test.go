package mail

import (
	"bytes"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// FuzzEnvelope holds that a mail comes out of the queue as it was put in, under its
// own id and key alone and not changed by a bit; and that no bytes, sealed rightly
// or not, break who opens them.
func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"to":"a@example.org","template":"code","data":{"code":"1"},"sent_at":"2027-03-14T12:00:00Z"}`), "a@example.org", "123456", uint16(3))
	f.Add([]byte(`{"data":null,"sent_at":0}`), "", "\u2028<&>", uint16(0))
	f.Add([]byte(`[`), "x", "", uint16(999))
	f.Fuzz(func(t *testing.T, raw []byte, to, code string, at uint16) {
		ours, err := newSealer(bytes.Repeat([]byte{1}, 32), "auth")
		require.NoError(t, err)
		other, err := newSealer(bytes.Repeat([]byte{1}, 32), "user")
		require.NoError(t, err)
		id := uuid.NewSHA1(uuid.Nil, raw)

		_, err = ours.open(id, raw)
		require.Error(t, err, "nobody has sealed this")
		_, _ = ours.open(id, ours.aead.Seal(nil, nil, raw, id[:])) // whatever was sealed: an envelope or an error

		if !utf8.ValidString(to) || !utf8.ValidString(code) {
			return
		}
		put := envelope{To: to, Template: "code", Data: map[string]string{"code": code}, SentAt: time.Unix(int64(at), 0).UTC(), ExpiresAt: time.Unix(9, 0).UTC()}
		sealed, err := ours.seal(id, put)
		require.NoError(t, err)
		got, err := ours.open(id, sealed)
		require.NoError(t, err)
		require.Equal(t, put, got)
		_, err = ours.open(uuid.Nil, sealed)
		require.Error(t, err, "bound to its id")
		_, err = other.open(id, sealed)
		require.Error(t, err, "and to its service")
		sealed[int(at)%len(sealed)] ^= 1
		_, err = ours.open(id, sealed)
		require.Error(t, err)
	})
}
