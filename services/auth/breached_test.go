package auth

import (
	"crypto/sha1"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBreachedPasswords(t *testing.T) {
	t.Parallel()
	t.Run("BuiltInListIsRealAndWithoutRegardToCase", func(t *testing.T) {
		t.Parallel()
		require.Greater(t, len(builtInPasswords()), 15_000)
		known := newBreached(t, "")
		for password, want := range map[string]bool{"letmein1": true, "LetMeIn1": true, "qwertyuiop": true, "tr0mbone-lantern": false} {
			got, err := known.contains(password)
			require.NoError(t, err)
			require.Equal(t, want, got, password)
		}
	})
	t.Run("FileOfTheOperator", func(t *testing.T) {
		t.Parallel()
		for _, n := range []int{1, 2, 3, 7, 1000} {
			for _, end := range []string{"\n", "\r\n"} {
				known := newBreached(t, breachList(t, n, end))
				for i := range n {
					got, err := known.contains(fmt.Sprintf("leaked password %d", i))
					require.NoError(t, err)
					require.True(t, got, "%d of %d", i, n)
				}
				got, err := known.contains("LEAKED password 0")
				require.NoError(t, err)
				require.True(t, got, "capital letters make no other password")
				for i := range 20 {
					got, err := known.contains(fmt.Sprintf("another password %d", i))
					require.NoError(t, err)
					require.False(t, got)
				}
			}
		}
	})
	t.Run("WhatIsNoSuchFileIsRefusedAtStart", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		for name, content := range map[string]string{
			"empty": "", "text": "password\nqwerty\n", "short": "0018A45C4D1DEF81644B54AB7F969B88D65E\n",
			"descending": strings.Repeat("F", 40) + ":1\n" + strings.Repeat("0", 40) + ":1\n",
		} {
			path := filepath.Join(dir, name)
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			_, err := openBreached(path)
			require.ErrorContains(t, err, "BREACHED_PASSWORDS_FILE", name)
		}
		_, err := openBreached(filepath.Join(dir, "absent"))
		require.ErrorContains(t, err, "BREACHED_PASSWORDS_FILE")
	})
}

// breachList writes n passwords as Pwned Passwords does.
func breachList(t *testing.T, n int, end string) string {
	t.Helper()
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("%X:%d", sha1.Sum(fmt.Appendf(nil, "leaked password %d", i)), 1+i*i*i))
	}
	slices.Sort(lines)
	path := filepath.Join(t.TempDir(), "pwned.txt")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, end)+end), 0o600))
	return path
}
