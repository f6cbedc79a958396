package chaos //nolint:testpackage // the plan is not exported: nobody else makes one

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlan(t *testing.T) {
	t.Parallel()
	plan := func(seed uint64) []round { return rounds(Config{Seed: seed, Duration: 10 * time.Minute}) }

	t.Run("SameSeedSameRounds", func(t *testing.T) {
		t.Parallel()
		first, again := plan(7), plan(7)
		require.Equal(t, first, again)
		require.NotEqual(t, first, plan(8))
		first, again = short(7), short(7)
		require.Equal(t, first, again)
	})
	t.Run("EveryKindAndEveryVictimHasItsTurn", func(t *testing.T) {
		t.Parallel()
		kinds, killed := map[kind]bool{}, map[string]bool{}
		for _, r := range plan(1)[:18] { // some ten minutes
			kinds[r.Kind] = true
			for _, name := range r.Targets {
				killed[name] = killed[name] || r.Kind == kill
			}
		}
		require.Len(t, kinds, 8)
		for _, name := range killable {
			require.True(t, killed[name], "%s is killed", name)
		}
		kinds = map[kind]bool{}
		for _, r := range short(1) {
			kinds[r.Kind] = true
		}
		require.Len(t, kinds, 6, "the short plan has either cut or hang, and freezes meanwhile")
	})
	t.Run("LongOutageOnce", func(t *testing.T) {
		t.Parallel()
		long := 0
		for _, r := range rounds(Config{Seed: 3, Duration: 20 * time.Minute, LongAway: 5 * time.Minute}) {
			if r.For == 5*time.Minute {
				require.Equal(t, away, r.Kind)
				long++
			}
		}
		require.Equal(t, 1, long)
	})
	t.Run("NobodyIsHitTwiceAtOnce", func(t *testing.T) {
		t.Parallel()
		for _, r := range plan(5) {
			require.True(t, len(r.Targets) < 2 || r.Targets[0] != r.Targets[1], "%s", r)
		}
	})
}
