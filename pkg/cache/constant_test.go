package cache_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConstantValuesAreKeptWithoutALease(t *testing.T) {
	t.Parallel()
	s := newSource(map[string]int{"a": 1, "b": 2})
	opts := numbers(s)
	opts.Constant = true
	c := newCache(t, open(t, embedded(t)), opts)
	for range 2 {
		found, err := c.GetMany(t.Context(), []string{"a", "b", "nobody"})
		require.NoError(t, err)
		require.Equal(t, map[string]int{"a": 1, "b": 2}, found)
	}
	loads := s.loads.Load()
	requireValue(t, c, "a", 1)
	requireValue(t, c, "b", 2)
	require.Equal(t, loads, s.loads.Load(), "both are kept")
}
