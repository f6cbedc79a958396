package dev

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThereAreProcessorsToSpare(t *testing.T) {
	t.Parallel()
	for processors, want := range map[int]int{1: 1, 2: 3, 3: 4, 4: 6, 16: 24} {
		require.Equal(t, want, withSpare(processors))
	}
}
