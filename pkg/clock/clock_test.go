package clock_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
)

func TestFakeStandsStillUntilMoved(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 2, 3, 4, 5, 6789, time.FixedZone("east", 3600))
	c := clock.NewFake(start)

	require.Equal(t, start.UTC().Truncate(time.Microsecond), c.Now())
	require.Equal(t, start.UTC().Truncate(time.Microsecond), c.Now(), "it stands still")

	c.Advance(36 * time.Hour)
	require.Equal(t, start.Add(36*time.Hour).UTC().Truncate(time.Microsecond), c.Now())

	c.Set(start)
	require.Equal(t, time.UTC, c.Now().Location())
	require.True(t, c.Now().Equal(start.Truncate(time.Microsecond)))
}

func TestOffsetRunsAhead(t *testing.T) {
	t.Parallel()
	base := clock.NewFake(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	ahead := clock.Offset(base, 24*time.Hour)

	require.Equal(t, base.Now().Add(24*time.Hour), ahead.Now())
	base.Advance(time.Second)
	require.Equal(t, base.Now().Add(24*time.Hour), ahead.Now())
	require.Same(t, base, clock.Offset(base, 0))
}

func TestSystemIsWhatPostgresKeeps(t *testing.T) {
	t.Parallel()
	now := clock.System().Now()
	require.Equal(t, now, now.Truncate(time.Microsecond))
	require.WithinDuration(t, time.Now(), now, time.Minute)
}
