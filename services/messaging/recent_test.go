package messaging_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// last is the text of the last entry of the person's most recent conversation.
func (p *person) last() string {
	p.w.t.Helper()
	res, err := p.ListConversations(p.w.t.Context(), &messagingv1.ListConversationsRequest{PageSize: 1})
	require.NoError(p.w.t, err)
	require.Len(p.w.t, res.GetConversations(), 1)
	return res.GetConversations()[0].GetLastEntry().GetMessage().GetText()
}

// What is cached of a list is never what has been overtaken.
func TestRecentConversations(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	t.Run("EveryMessageShowsAtOnce", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		for n := range 30 {
			who, other := a, b
			if n%3 == 0 {
				who, other = b, a
			}
			who.say(id, text(0, n))
			require.Equal(t, text(0, n), other.last())
			require.Equal(t, text(0, n), who.last())
			require.Equal(t, text(0, n), who.get(id).GetLastEntry().GetMessage().GetText())
			require.EqualValues(t, n+1, who.get(id).GetHeadOrdinal())
		}
	})
	t.Run("MarksShowThoughTheEntryIsCached", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		seq := a.say(id, "hello")
		require.EqualValues(t, 1, b.get(id).GetUnread())
		b.read(id, seq)
		b.untilMarks(id, seq, seq)
		require.Zero(t, b.get(id).GetUnread())
	})
	t.Run("TheSecondReaderDoesNotNeedTheEntry", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		seq := a.say(id, "hello")
		require.Equal(t, "hello", a.last())
		w.exec("DELETE FROM entry WHERE conversation_id = $1 AND seq = $2", id, seq)
		require.Equal(t, "hello", b.last(), "from the cache")
		changed, _, _ := b.sync("", 10)
		require.Equal(t, "hello", changed[0].GetLastEntry().GetMessage().GetText(), "to Sync as well")
		a.say(id, "again")
		require.Equal(t, "again", b.last())
	})
	t.Run("AnEntryWhosePartitionIsGoneIsLeftOut", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		seq := a.say(id, "hello")
		w.exec("DELETE FROM entry WHERE conversation_id = $1 AND seq = $2", id, seq)
		seen := b.get(id)
		require.Nil(t, seen.GetLastEntry())
		require.Equal(t, seq, seen.GetHeadSeq())
	})
}
