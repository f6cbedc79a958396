package messaging

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// FuzzDecodeEntry holds that what Redis gives is an entry or refused, that nothing
// of it is lost, and that an entry comes back as it was put there.
func FuzzDecodeEntry(f *testing.F) {
	sender, message := uuid.NewSHA1(uuid.Nil, []byte("sender")), uuid.NewSHA1(uuid.Nil, []byte("message"))
	for _, e := range []logEntry{
		{},
		{conversationID: message, seq: 7, ordinal: 3, senderID: sender, createdAt: time.UnixMicro(1_800_000_000_000_000), kind: 1, payload: []byte("hi")},
		{senderID: sender, clientMessageID: &message, seq: -1, kind: -1, createdAt: time.UnixMicro(-1)},
	} {
		raw, err := encodeEntry(e)
		require.NoError(f, err)
		f.Add(raw)
		f.Add(raw[:len(raw)-1])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEntry(raw)
		if len(raw) < encodedHead {
			require.ErrorIs(t, err, errShortEntry)
			return
		}
		require.NoError(t, err)
		again, err := encodeEntry(e)
		require.NoError(t, err)
		require.Equal(t, raw, again)
		if e.clientMessageID != nil {
			require.NotEqual(t, uuid.Nil, *e.clientMessageID, "none is nil")
		}
	})
}
