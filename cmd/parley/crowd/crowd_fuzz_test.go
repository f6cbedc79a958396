package crowd_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/crowd"
)

// FuzzRead holds that files that somebody else has written, or cut, are people
// with a key that can sign, or an error.
func FuzzRead(f *testing.F) {
	line := `{"id":"` + uuid.NewString() + `","session":"` + uuid.NewString() + `","token":"t","expires_at":"2026-01-01T00:00:00Z"}` + "\n"
	key := `{"kid":"k","seed":"` + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" + `","issuer":"i","audience":"a","life_seconds":600}`
	f.Add([]byte(line+line), []byte(key), 1, 1)
	f.Add([]byte(line), []byte(key), 0, 2)
	f.Add([]byte(line[:20]), []byte(`{"seed":"AA=="}`), 0, 1)
	f.Add([]byte(`null`), []byte(`{"life_seconds":-1}`), 0, 1)
	f.Add([]byte{}, []byte(`null`), 0, 0)
	f.Fuzz(func(t *testing.T, people, key []byte, skip, n int) {
		if n < 0 || n > 100 || skip < 0 {
			return // a command line is checked before
		}
		path := filepath.Join(t.TempDir(), "people")
		require.NoError(t, os.WriteFile(path, people, 0o600))
		require.NoError(t, os.WriteFile(crowd.KeyPath(path), key, 0o600))
		got, mint, err := crowd.Read(path, skip, n)
		if err != nil {
			require.Nil(t, got)
			return
		}
		require.Len(t, got, n)
		for i := range got {
			before := got[i]
			if err := mint.Renew(&got[i], time.Unix(1_800_000_000, 0)); err != nil {
				require.Equal(t, before, got[i], "a token that cannot be made changes nobody")
				continue
			}
			require.NotEmpty(t, got[i].Token)
			require.True(t, got[i].Expires.After(time.Unix(1_800_000_000, 0)))
		}
	})
}
