package messaging_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

func TestListMessages(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	var want []string
	for i := range 7 {
		a.say(id, text(0, i))
		want = append([]string{text(0, i)}, want...)
	}
	for _, size := range []int32{1, 3, 7, 8} {
		t.Run(fmt.Sprintf("PagesOf%d", size), func(t *testing.T) {
			t.Parallel()
			var got []string
			var pages int
			for token := ""; pages == 0 || token != ""; pages++ {
				res, err := b.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: id, PageSize: size, PageToken: token})
				require.NoError(t, err)
				got, token = append(got, texts(res.GetEntries())...), res.GetNextPageToken()
			}
			require.Equal(t, want, got)
			require.Equal(t, (7+int(size)-1)/int(size), pages, "no empty page")
		})
	}
	t.Run("NewMessagesDoNotShiftPages", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		for i := range 7 {
			a.say(id, text(0, i))
		}
		first, err := b.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: id, PageSize: 3})
		require.NoError(t, err)
		a.say(id, "meanwhile")
		second, err := b.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: id, PageSize: 3, PageToken: first.GetNextPageToken()})
		require.NoError(t, err)
		require.Equal(t, want[3:6], texts(second.GetEntries()))
	})
	t.Run("TokenOfAnotherConversation", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		res, err := a.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: id, PageSize: 3})
		require.NoError(t, err)
		_, err = a.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: a.by(w).talk(w.person()), PageToken: res.GetNextPageToken()})
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PAGE_TOKEN_INVALID)
	})
	t.Run("OfAStranger", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, err := w.person().ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: id})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
	})
	t.Run("OfAnEmptyOne", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, d, empty := w.friends()
		res, err := d.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: empty})
		require.NoError(t, err)
		require.Empty(t, res.GetEntries())
		require.Empty(t, res.GetNextPageToken())
	})
}

func TestListEvents(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	for i := range 5 {
		a.say(id, text(0, i))
	}
	t.Run("FillsAHole", func(t *testing.T) {
		t.Parallel()
		res, err := b.ListEvents(ctx, &messagingv1.ListEventsRequest{ConversationId: id, AfterSeq: 2, Limit: 3})
		require.NoError(t, err)
		require.Equal(t, []string{text(0, 1), text(0, 2), text(0, 3)}, texts(res.GetEntries()))
		require.True(t, res.GetHasMore())
		require.EqualValues(t, 6, res.GetHeadSeq())
	})
	t.Run("AtTheHead", func(t *testing.T) {
		t.Parallel()
		res, err := b.ListEvents(ctx, &messagingv1.ListEventsRequest{ConversationId: id, AfterSeq: 6})
		require.NoError(t, err)
		require.Empty(t, res.GetEntries())
		require.False(t, res.GetHasMore())
	})
	t.Run("BeyondTheHead", func(t *testing.T) {
		t.Parallel()
		_, err := b.ListEvents(ctx, &messagingv1.ListEventsRequest{ConversationId: id, AfterSeq: 7})
		requireReason(t, err, connect.CodeOutOfRange, errorv1.Reason_REASON_RESET_REQUIRED)
	})
	t.Run("OnlyBetweenJoiningAndLeaving", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		for i := range 5 {
			a.say(id, text(0, i))
		}
		w.exec("UPDATE member SET join_seq = 3, left_seq = 5 WHERE conversation_id = $1 AND user_id = $2", id, b.id)
		res, err := b.ListEvents(ctx, &messagingv1.ListEventsRequest{ConversationId: id})
		require.NoError(t, err)
		require.Equal(t, []string{text(0, 1), text(0, 2), text(0, 3)}, texts(res.GetEntries()))
		require.EqualValues(t, 5, res.GetHeadSeq())
		messages, err := b.ListMessages(ctx, &messagingv1.ListMessagesRequest{ConversationId: id})
		require.NoError(t, err)
		require.Len(t, messages.GetEntries(), 3)
	})
	t.Run("OfAStranger", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, err := w.person().ListEvents(ctx, &messagingv1.ListEventsRequest{ConversationId: uuid.NewString()})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
	})
}

// History is read from the months that hold it, however many there are.
func TestHistoryTouchesOnlyItsPartitions(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{At: time.Date(2026, time.March, 10, 0, 0, 0, 0, time.UTC)}, nil)
	a, b, id := w.friends()
	c, gone, left := w.friends()
	c.say(left, "seen by both")
	w.exec("UPDATE member SET left_seq = 2 WHERE conversation_id = $1 AND user_id = $2", left, gone.id)
	const months, each = 6, 10
	var want []string
	for m := range months {
		for n := range each {
			a.say(id, text(m, n))
			want = append(want, text(m, n))
		}
		w.Clock.Advance(31 * 24 * time.Hour)
	}
	c.say(left, "seen by one")
	require.Equal(t, want, texts(b.log(id)))
	b.read(id, 15) // the ordinal of an entry of a month long ago
	b.untilMarks(id, 15, 15)
	require.EqualValues(t, months*each-14, b.get(id).GetUnread())

	for name, c := range map[string]struct {
		query, file string
		args        map[string]string
		touched     []string
	}{
		"OneMonth": {"EntryRange", "entry", map[string]string{"from_seq": "13", "to_seq": "20"}, []string{"entry_p202604"}},
		"Turn":     {"EntryRange", "entry", map[string]string{"from_seq": "10", "to_seq": "13"}, []string{"entry_p202603", "entry_p202604"}},
		"Head":     {"EntryRange", "entry", map[string]string{"from_seq": "58", "to_seq": "61"}, []string{"entry_p202608"}},
		"Seen": {"ConversationSeen", "conversation", map[string]string{
			"viewer_ids": "'{" + b.id.String() + "}'", "conversation_ids": "'{" + id + "}'",
		}, nil},
		"SeenByOneWhoLeft": {"ConversationSeen", "conversation", map[string]string{
			"viewer_ids": "'{" + gone.id.String() + "}'", "conversation_ids": "'{" + left + "}'",
		}, []string{"entry_p202603"}},
		"LastEntry": {"EntryHead", "entry", map[string]string{
			"conversation_ids": "'{" + id + "}'", "seqs": "'{61}'", "ats": "'{2026-08-12 00:00:00+00}'",
		}, []string{"entry_p202608"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := w.in(t)
			c.args["conversation_id"] = "'" + id + "'::uuid"
			touched := w.touched(query(t, c.file, c.query, c.args))
			require.ElementsMatch(t, c.touched, touched)
		})
	}
}

// query is a statement of queries/<file>.sql with its arguments filled in.
func query(t testing.TB, file, name string, args map[string]string) string {
	t.Helper()
	raw, err := os.ReadFile("queries/" + file + ".sql")
	require.NoError(t, err)
	_, sql, found := strings.Cut(string(raw), "-- name: "+name+" :many\n")
	require.True(t, found)
	sql, _, _ = strings.Cut(sql, ";")
	for arg, value := range args {
		sql = regexp.MustCompile(`@`+arg+`\b`).ReplaceAllString(sql, value)
	}
	return sql
}

// touched are the partitions of entry that running a statement reads.
func (w *world) touched(sql string) []string {
	w.t.Helper()
	rows, err := w.DB("messaging").Query(w.t.Context(), "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) "+sql)
	require.NoError(w.t, err)
	defer rows.Close()
	touched := map[string]bool{}
	for rows.Next() {
		var line string
		require.NoError(w.t, rows.Scan(&line))
		if name := regexp.MustCompile(`entry_p\d{6}\b`).FindString(line); name != "" && strings.Contains(line, "actual") {
			touched[name] = true
		}
	}
	require.NoError(w.t, rows.Err())
	var out []string
	for name := range touched {
		out = append(out, name)
	}
	return out
}
