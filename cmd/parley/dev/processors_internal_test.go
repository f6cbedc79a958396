package dev

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThereIsAProcessorToSpare(t *testing.T) {
	t.Parallel()
	for processors, want := range map[int]int{1: 2, 2: 3, 3: 5, 4: 6, 16: 24} {
		require.Equal(t, want, withSpare(processors))
	}
}
