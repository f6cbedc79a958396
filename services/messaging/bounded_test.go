package messaging

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// asked answers by a rule and keeps how many checks each question had.
type asked struct {
	sizes  []int
	allows func(PermissionCheck) bool
	short  bool // answers one check too few
	err    error
}

func (a *asked) CheckBatch(_ context.Context, checks []PermissionCheck) ([]bool, error) {
	a.sizes = append(a.sizes, len(checks))
	var allowed []bool
	for _, c := range checks {
		allowed = append(allowed, a.allows(c))
	}
	if a.short {
		allowed = allowed[1:]
	}
	return allowed, a.err
}

func TestPrivacyIsAskedInBoundedQuestions(t *testing.T) {
	t.Parallel()
	checks := make([]PermissionCheck, 2*mostChecks+1)
	for i := range checks {
		checks[i] = PermissionCheck{Actor: uuid.New(), Target: uuid.New()}
	}
	rule := func(c PermissionCheck) bool { return c.Actor[15]%2 == 0 }
	a := &asked{allows: rule}
	allowed, err := bounded{a}.CheckBatch(t.Context(), checks)
	require.NoError(t, err)
	require.Equal(t, []int{mostChecks, mostChecks, 1}, a.sizes)
	require.Len(t, allowed, len(checks))
	for i, c := range checks {
		require.Equal(t, rule(c), allowed[i], "the answer of another check")
	}

	away := &asked{allows: rule, err: errors.New("away")}
	_, err = bounded{away}.CheckBatch(t.Context(), checks)
	require.ErrorIs(t, err, away.err)
	require.Len(t, away.sizes, 1, "who is away is not asked again")
	_, err = bounded{&asked{allows: rule, short: true}}.CheckBatch(t.Context(), checks)
	require.ErrorIs(t, err, errUnanswered)
}
