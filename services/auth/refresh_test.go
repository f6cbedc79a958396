package auth

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestRefreshToken(t *testing.T) {
	t.Parallel()
	sealer := refreshSealer{key: []byte("one key of the server, 32 bytes!")}
	first := sealer.first(uuid.New())

	t.Run("ReadsWhatItWrote", func(t *testing.T) {
		t.Parallel()
		got, ok := parseRefreshToken(first.String())
		require.True(t, ok)
		require.Equal(t, first, got)
	})
	t.Run("RefusesOtherText", func(t *testing.T) {
		t.Parallel()
		text := first.String()
		for _, other := range []string{"", "prt_", text[len(refreshPrefix):], text + "A", text[:len(text)-1], "prt_" + text, text + "=", text[:20] + "\n" + text[20:]} {
			_, ok := parseRefreshToken(other)
			require.False(t, ok, other)
		}
	})
	t.Run("SuccessorIsAlwaysTheSame", func(t *testing.T) {
		t.Parallel()
		again := sealer.next(first)
		require.Equal(t, again, sealer.next(first))
		require.NotEqual(t, first.secret, sealer.next(first).secret)
		require.NotEqual(t, sealer.next(first), sealer.next(sealer.next(first)))
	})
	t.Run("TagIsBoundToSessionSecretAndKey", func(t *testing.T) {
		t.Parallel()
		require.True(t, sealer.issued(first))
		otherSession, otherSecret := first, first
		otherSession.sessionID = uuid.New()
		otherSecret.secret[0] ^= 1
		require.False(t, sealer.issued(otherSession))
		require.False(t, sealer.issued(otherSecret))
		require.False(t, refreshSealer{key: []byte("another key of the server, 32 by")}.issued(first))
	})
}

func TestPresentedRefreshToken(t *testing.T) {
	t.Parallel()
	sealer := refreshSealer{key: []byte("one key of the server, 32 bytes!")}
	rotated := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	grand := sealer.first(uuid.New())
	parent := sealer.next(grand)
	newest := sealer.next(parent)
	forged := parent
	forged.secret[3] ^= 0x40
	hash := newest.hash()
	state := sessionState{tokenHash: hash[:], rotatedAt: rotated, expiresAt: rotated.Add(90 * 24 * time.Hour), idleExpiresAt: rotated.Add(30 * 24 * time.Hour)}
	revoked := state
	revoked.revoked = true
	closing := state
	closing.expiresAt = rotated.Add(time.Second)

	for name, c := range map[string]struct {
		token refreshToken
		state sessionState
		after time.Duration
		want  refreshOutcome
	}{
		"NewestRotates":                    {newest, state, time.Hour, refreshRotates},
		"PredecessorRepeatsWithinGrace":    {parent, state, refreshGrace - time.Millisecond, refreshRepeats},
		"PredecessorIsReuseAfterGrace":     {parent, state, refreshGrace, refreshReused},
		"GrandparentIsReuseEvenAtOnce":     {grand, state, 0, refreshReused},
		"InventedTokenChangesNothing":      {forged, state, 0, refreshInvalid},
		"RevokedSessionRefusesNewest":      {newest, revoked, 0, refreshInvalid},
		"RevokedSessionRefusesOld":         {grand, revoked, 0, refreshInvalid},
		"IdleSessionRefuses":               {newest, state, 30 * 24 * time.Hour, refreshInvalid},
		"SessionPastItsAbsoluteEndRefuses": {newest, closing, time.Second, refreshInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, sealer.present(c.token, c.state, rotated.Add(c.after)))
		})
	}

	t.Run("NewestSurvivesAnotherServerKey", func(t *testing.T) {
		t.Parallel()
		exchanged := refreshSealer{key: []byte("another key of the server, 32 by")}
		require.Equal(t, refreshRotates, exchanged.present(newest, state, rotated))
		require.Equal(t, refreshInvalid, exchanged.present(parent, state, rotated))
	})
}
