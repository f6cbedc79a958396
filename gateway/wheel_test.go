package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// woken counts how often it is woken and asks to be woken again after again.
type woken struct {
	entry wheelEntry
	times int
	again time.Duration
}

func (w *woken) wake() time.Duration {
	w.times++
	return w.again
}

// turnTo empties all slots up to a tick, as the ticker would.
func turnTo(w *wheel, tick int64) {
	for _, shard := range w.shards {
		w.turn(shard, tick)
	}
}

func TestWheel(t *testing.T) {
	t.Parallel()
	// An hour per tick: only the test turns it.
	newHours := func() *wheel { return newWheel(time.Hour) }

	t.Run("WakesWhenDueAndNotBefore", func(t *testing.T) {
		t.Parallel()
		w, owner := newHours(), &woken{}
		w.add(&owner.entry, owner, 3*time.Hour)
		turnTo(w, 3)
		require.Zero(t, owner.times)
		turnTo(w, 4)
		require.Equal(t, 1, owner.times)
		turnTo(w, 600)
		require.Equal(t, 1, owner.times, "it asked for no other wake")
	})
	t.Run("WhatIsBeyondOneTurnWaits", func(t *testing.T) {
		t.Parallel()
		w, owner := newHours(), &woken{}
		w.add(&owner.entry, owner, (wheelSlots+10)*time.Hour)
		turnTo(w, wheelSlots)
		require.Zero(t, owner.times)
		turnTo(w, wheelSlots+11)
		require.Equal(t, 1, owner.times)
	})
	t.Run("ASleepLongerThanATurnMissesNobody", func(t *testing.T) {
		t.Parallel()
		w := newHours()
		owners := make([]woken, 50)
		for i := range owners {
			w.add(&owners[i].entry, &owners[i], time.Duration(i)*time.Hour)
		}
		turnTo(w, 10*wheelSlots)
		for i := range owners {
			require.Equal(t, 1, owners[i].times)
		}
	})
	t.Run("WithinOnlyBringsForward", func(t *testing.T) {
		t.Parallel()
		w, owner := newHours(), &woken{}
		w.add(&owner.entry, owner, 5*time.Hour)
		w.within(&owner.entry, 2*time.Hour)
		w.within(&owner.entry, 9*time.Hour)
		turnTo(w, 3)
		require.Equal(t, 1, owner.times)
	})
	t.Run("RemovedIsNeverWoken", func(t *testing.T) {
		t.Parallel()
		w, owner, other := newHours(), &woken{}, &woken{}
		w.add(&owner.entry, owner, time.Hour)
		w.add(&other.entry, other, time.Hour)
		w.remove(&owner.entry)
		w.within(&owner.entry, time.Hour)
		turnTo(w, 5)
		require.Zero(t, owner.times)
		require.Equal(t, 1, other.times)
	})
	t.Run("WakesAgainAsAsked", func(t *testing.T) {
		t.Parallel()
		w, owner := newHours(), &woken{again: time.Nanosecond}
		w.add(&owner.entry, owner, time.Nanosecond)
		for tick := int64(1); tick <= 5; tick++ {
			turnTo(w, tick)
		}
		require.Equal(t, 5, owner.times)
	})
}
