package messaging_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/servicetest"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

func TestSync(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)

	t.Run("NothingAtAll", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		p := w.person()
		changed, cursor, reset := p.sync("", 0)
		require.Empty(t, changed)
		require.False(t, reset)
		changed, _, reset = p.sync(cursor, 0)
		require.Empty(t, changed)
		require.False(t, reset)
	})
	t.Run("TellsWhatChanged", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, first := w.friends()
		second, third := a.talk(w.person()), a.talk(w.person())
		all, cursor, reset := a.sync("", 0)
		require.False(t, reset)
		require.ElementsMatch(t, []string{first, second, third}, ids(all))

		b.say(first, "news")
		changed, next, reset := a.sync(cursor, 0)
		require.False(t, reset)
		require.Contains(t, ids(changed), first)
		for _, c := range changed {
			if c.GetId() == first {
				require.Equal(t, "news", c.GetLastEntry().GetMessage().GetText())
				require.EqualValues(t, 1, c.GetUnread())
			}
		}
		seq := a.say(second, "mine")
		changed, next, _ = a.sync(next, 0)
		require.Contains(t, ids(changed), second)

		a.read(first, 2)
		a.untilMarks(first, 2, 2)
		changed, next, _ = a.sync(next, 0) // own marks, from another device
		require.Contains(t, ids(changed), first)

		_, cursor, _ = b.sync("", 0)
		a.read(first, seq)
		changed, _, _ = b.sync(cursor, 0)
		require.NotContains(t, ids(changed), second, "not b's")

		fourth := w.person().talk(a)
		changed, _, _ = a.sync(next, 0)
		require.Contains(t, ids(changed), fourth)
	})
	t.Run("TellsTheOthersMarks", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		a.say(id, "read this")
		_, cursor, _ := a.sync("", 0)
		b.read(id, 2)
		b.untilMarks(id, 2, 2)
		changed, _, _ := a.sync(cursor, 0)
		require.Contains(t, ids(changed), id)
		require.EqualValues(t, 2, me(b, changed[0]).GetReadSeq())
	})
	t.Run("PagesHoldEverythingOnce", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a := w.person()
		var made []string
		for range 7 {
			made = append(made, a.talk(w.person()))
		}
		// Four of them change in one transaction: a page ends in the middle of it.
		w.exec("UPDATE conversation SET last_xid = pg_current_xact_id() WHERE id = ANY($1::uuid[])", made[:4])
		for _, size := range []int32{1, 2, 3, 7, 8} {
			changed, _, _ := a.sync("", size)
			require.ElementsMatch(t, made, ids(changed), "pages of %d", size)
		}
	})
	t.Run("WhatChangesBetweenPagesIsTold", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, ctx := w.person(), t.Context()
		made := []string{a.talk(w.person()), a.talk(w.person()), a.talk(w.person())}
		page, err := a.Sync(ctx, &messagingv1.SyncRequest{PageSize: 1})
		require.NoError(t, err)
		require.True(t, page.GetHasMore())
		a.say(made[0], "again") // told on the first page already
		rest, next, _ := a.sync(page.GetNextCursor(), 1)
		later, _, _ := a.sync(next, 0)
		require.Subset(t, append(ids(rest), ids(later)...), made)
	})
	t.Run("ToOneWhoHasLeft", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		_, cursor, _ := b.sync("", 0)
		w.exec("UPDATE member SET left_seq = 1, mark_xid = pg_current_xact_id() WHERE conversation_id = $1 AND user_id = $2", id, b.id)
		changed, next, _ := b.sync(cursor, 0)
		require.Equal(t, []string{id}, ids(changed))
		require.EqualValues(t, 1, me(b, changed[0]).GetLeftSeq())
		a.say(id, "without b")
		changed, _, _ = b.sync(next, 0) // it may be told twice, but never what b must not see
		for _, c := range changed {
			require.EqualValues(t, 1, c.GetHeadSeq())
			require.Nil(t, c.GetLastEntry().GetMessage())
		}
	})
	t.Run("ManyAtOnce", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		const n = 100
		people, want := make([]*person, n), make([]string, n)
		partner := w.person()
		together(n, func(i int) {
			people[i] = w.person()
			want[i] = people[i].talk(partner)
		})
		together(n, func(i int) {
			changed, _, _ := people[i].sync("", 0)
			require.Equal(t, []string{want[i]}, ids(changed))
		})
		changed, _, _ := partner.sync("", 30)
		require.ElementsMatch(t, want, ids(changed))
	})
}

// A transaction that began before a Sync and commits after it is the reason why
// the next cursor is the snapshot's xmin and not its xmax.
func TestSyncDoesNotSkipALateCommit(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()
	a, _, id := w.friends()
	_, _, other := w.friends()
	_, cursor, _ := a.sync("", 0)

	tx, err := w.DB("messaging").Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(ctx) }()
	_, err = tx.Exec(ctx, "UPDATE conversation SET last_xid = pg_current_xact_id() WHERE id = $1", id)
	require.NoError(t, err)
	for range 5 { // later transaction ids, committed earlier
		w.exec("UPDATE conversation SET last_xid = pg_current_xact_id() WHERE id = $1", other)
	}
	for range 3 {
		var changed []*messagingv1.Conversation
		changed, cursor, _ = a.sync(cursor, 0)
		require.NotContains(t, ids(changed), other)
	}
	require.NoError(t, tx.Commit(ctx))
	changed, _, reset := a.sync(cursor, 0)
	require.False(t, reset)
	require.Equal(t, []string{id}, ids(changed))
}

func TestSyncReset(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	a, b, id := w.friends()
	_, good, _ := a.sync("", 0)
	_, foreign, _ := b.sync("", 0)

	// After an operator raised the number, every earlier cursor is worthless.
	raised := start(t, servicetest.Options{
		Settings: append([]string{"PARLEY_MESSAGING_SYNC_EPOCH=1"}, quick...),
	}, nil)
	c, _, otherID := raised.friends()
	_, ofOther, _ := c.sync("", 0)

	for name, cursor := range map[string]string{
		"Garbage": "garbage", "AnotherPersons": foreign, "AnotherEpoch": ofOther,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := w.in(t)
			a := a.by(w)
			changed, next, reset := a.sync(cursor, 0)
			require.True(t, reset)
			require.Equal(t, []string{id}, ids(changed))
			_, _, reset = a.sync(next, 0)
			require.False(t, reset)
		})
	}
	t.Run("RaisedNumber", func(t *testing.T) {
		t.Parallel()
		// The same person in both databases, which are of one cluster.
		raised := raised.in(t)
		raised.exec("INSERT INTO member (conversation_id, user_id, join_seq, mark_xid) VALUES ($1, $2, 1, pg_current_xact_id())", otherID, a.id)
		there := raised.as(a.id)
		changed, _, reset := there.sync(good, 0)
		require.True(t, reset)
		require.Equal(t, []string{otherID}, ids(changed))
	})
	t.Run("FromTheFuture", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		// What a database that was set back looks like: ids that it has not given out.
		changed, _, reset := a.by(w).sync(future(t, good, a.id), 0)
		require.True(t, reset)
		require.Equal(t, []string{id}, ids(changed))
	})
	t.Run("GoodOne", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, _, reset := a.by(w).sync(good, 0)
		require.False(t, reset)
	})
}

// as is somebody with a given id.
func (w *world) as(id uuid.UUID) *person {
	p := w.stranger()
	p.id, p.caller = id, w.User(id)
	return p.at(w.Instances("messaging")[0])
}

// future is a cursor of this epoch with a transaction id far ahead.
func future(t testing.TB, cursor string, user uuid.UUID) string {
	t.Helper()
	type position struct {
		Epoch string    `json:"e"`
		Since uint64    `json:"s"`
		Last  uuid.UUID `json:"l"`
	}
	p, err := page.Decode[position]("messaging.sync", cursor, user)
	require.NoError(t, err)
	p.Since += 1 << 32
	out, err := page.Encode("messaging.sync", *p, user)
	require.NoError(t, err)
	return out
}
