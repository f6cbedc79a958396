package token

import (
	"crypto/sha256"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRememberedIsBoundedAndForgetsTheDead(t *testing.T) {
	t.Parallel()
	const limit = shards * 8
	r := newRemembered[int](limit)
	now := time.Unix(1e9, 0)
	key := func(i int) [sha256.Size]byte { return sha256.Sum256([]byte(strconv.Itoa(i))) }
	for i := range 10 * limit {
		r.put(r.generation(), key(i), i, now.Add(time.Minute), now)
		got, ok := r.get(key(i), now)
		require.True(t, ok, "the newest is always there")
		require.Equal(t, i, got)
	}
	require.LessOrEqual(t, r.len(), limit)

	later := now.Add(time.Minute)
	_, ok := r.get(key(10*limit-1), later)
	require.False(t, ok, "dead at its expiry")
	for i := range limit {
		r.put(r.generation(), key(-i-1), i, later.Add(time.Minute), later)
	}
	alive := 0
	for i := range r.shards {
		for _, e := range r.shards[i].entries {
			if later.Before(e.expires) {
				alive++
			}
		}
	}
	require.Greater(t, 2*alive, r.len(), "new entries sweep the dead ones")
	before := r.generation()
	r.forget()
	require.Zero(t, r.len())
	r.put(before, key(1), 1, later.Add(time.Minute), later)
	require.Zero(t, r.len(), "what was judged before is not remembered after")
}
