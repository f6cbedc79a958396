package messaging_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

func TestSendMessage(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()

	t.Run("IsStoredToldAndPushed", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		atA, atB := w.Pushes(a.id), w.Pushes(b.id)
		req := message(id, "hello")
		res, err := a.SendMessage(ctx, req)
		require.NoError(t, err)
		require.EqualValues(t, 2, res.GetSeq())
		require.EqualValues(t, 1, res.GetOrdinal())
		require.Equal(t, servicetest.Noon, res.GetCreatedAt().AsTime())

		entry := b.log(id)[1]
		require.Equal(t, "hello", entry.GetMessage().GetText())
		require.Equal(t, req.GetClientMessageId(), entry.GetClientMessageId())
		for _, pushes := range []*servicetest.Pushes{atA, atB} {
			push := pushes.Next(func(p *realtimev1.Push) bool { return p.GetEntry() != nil })
			require.True(t, proto.Equal(entry, push.GetEntry()), "pushed %v, stored %v", push.GetEntry(), entry)
		}
		told := w.Await("messaging", "message.created", func(ev *eventv1.Event) bool { return ev.GetKey() == id })
		require.EqualValues(t, 2, told.GetKeyVersion())
		require.NotContains(t, told.String(), "hello")
	})
	t.Run("OfAStranger", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, _, id := w.friends()
		_, err := w.person().SendMessage(ctx, message(id, "let me in"))
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
	})
	t.Run("NowhereAtAll", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, err := w.person().SendMessage(ctx, message(uuid.NewString(), "echo"))
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
	})
	t.Run("TooLong", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, _, id := w.friends()
		_, err := a.SendMessage(ctx, message(id, strings.Repeat("ö", 4001)))
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
		a.say(id, strings.Repeat("ö", 4000))
	})
	t.Run("AnyText", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		odd := "nul \x00, emoji 👩‍👩‍👧, right-to-left \u202e and a line\nbreak"
		a.say(id, odd)
		require.Equal(t, []string{odd}, texts(b.log(id)))
	})
	t.Run("AfterLeaving", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		a.say(id, "still there")
		w.exec("UPDATE member SET left_seq = 2, mark_xid = pg_current_xact_id() WHERE conversation_id = $1 AND user_id = $2", id, b.id)
		a.say(id, "behind your back")
		_, err := b.SendMessage(ctx, message(id, "wait"))
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_NOT_A_MEMBER)
		require.Equal(t, []string{"still there"}, texts(b.log(id)))
		require.EqualValues(t, 2, b.get(id).GetHeadSeq())
		require.Equal(t, "still there", b.get(id).GetLastEntry().GetMessage().GetText())
	})
	t.Run("IntoAClosedOne", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, _, id := w.friends()
		kept := message(id, "before")
		first, err := a.SendMessage(ctx, kept)
		require.NoError(t, err)
		w.exec("UPDATE conversation SET closed = true WHERE id = $1", id)
		_, err = a.SendMessage(ctx, message(id, "after"))
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONVERSATION_CLOSED)
		again, err := a.SendMessage(ctx, kept) // a retry is answered as before
		require.NoError(t, err)
		require.True(t, proto.Equal(first, again))
	})
}

func TestSendMessageWhileTheClockGoesBack(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	a, b, id := w.friends()
	w.Clock.Advance(time.Minute)
	a.say(id, "late")
	w.Clock.Advance(-time.Minute)
	a.say(id, "early")
	entries := b.log(id)
	require.False(t, entries[2].GetCreatedAt().AsTime().Before(entries[1].GetCreatedAt().AsTime()))
}

// exec changes the tables as a service that does not exist yet would.
func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.DB("messaging").Exec(w.t.Context(), sql, args...)
	require.NoError(w.t, err)
}

func TestSendMessageAgain(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{H2C: true}, nil)
	other := w.Add(w.def)
	ctx := t.Context()
	replicas := []*servicetest.Instance{w.Instances("messaging")[0], other}

	t.Run("SameContentGetsTheFirstAnswer", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		req := message(id, "once")
		first, err := a.SendMessage(ctx, req)
		require.NoError(t, err)
		b.say(id, "between")
		for _, replica := range replicas {
			again, err := a.at(replica).SendMessage(ctx, req)
			require.NoError(t, err)
			require.True(t, proto.Equal(first, again))
		}
		require.Equal(t, []string{"once", "between"}, texts(b.log(id)))
	})
	t.Run("OtherContentIsRefused", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, _, id := w.friends()
		req := message(id, "this")
		_, err := a.SendMessage(ctx, req)
		require.NoError(t, err)
		req.Text = "that"
		_, err = a.SendMessage(ctx, req)
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_CLIENT_MESSAGE_ID_REUSED)
		req.Text, req.ConversationId = "this", a.talk(w.person())
		_, err = a.SendMessage(ctx, req)
		requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_CLIENT_MESSAGE_ID_REUSED)
	})
	t.Run("AnothersIDIsNotMine", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		req := message(id, "same id")
		_, err := a.SendMessage(ctx, req)
		require.NoError(t, err)
		_, err = b.SendMessage(ctx, req)
		require.NoError(t, err)
		require.Len(t, texts(a.log(id)), 2)
	})
	t.Run("RacingOnTwoReplicas", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		for range 10 {
			a, b, id := w.friends()
			req := message(id, "race")
			second := proto.CloneOf(req)
			second.ConversationId = a.talk(w.person()) // another row lock: only the key collides
			seqs, reused := make([]int64, 8), make([]bool, 8)
			together(8, func(i int) {
				ask := req
				if i >= 6 {
					ask = second
				}
				res, err := a.at(replicas[i%2]).SendMessage(ctx, proto.CloneOf(ask))
				seqs[i], reused[i] = res.GetSeq(), connect.CodeOf(err) == connect.CodeAlreadyExists
			})
			// One content won, everywhere; the other is told so.
			won := slices.Index(reused, false)
			for i := range seqs {
				sameAsWinner := (i >= 6) == (won >= 6)
				require.Equal(t, !sameAsWinner, reused[i], "%v %v", seqs, reused)
				require.Equal(t, sameAsWinner, seqs[i] == 2, "%v %v", seqs, reused)
			}
			require.Len(t, append(texts(b.log(id)), texts(a.log(second.GetConversationId()))...), 1)
		}
	})
	t.Run("TwiceInOneBatch", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		reqs := make([]*messagingv1.SendMessageRequest, 8)
		for i := range reqs {
			reqs[i] = message(id, text(i, 0))
		}
		together(64, func(i int) {
			_, err := a.SendMessage(ctx, proto.CloneOf(reqs[i%8]))
			require.NoError(t, err)
		})
		require.Len(t, texts(b.log(id)), 8)
	})
}

func TestSendMessageAgainAfterTheMonth(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{At: time.Date(2026, time.March, 31, 23, 59, 59, 0, time.UTC)}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	req := message(id, "last of March")
	first, err := a.SendMessage(ctx, req)
	require.NoError(t, err)

	w.Clock.Advance(2 * time.Second)
	a.say(id, "first of April")
	again, err := a.SendMessage(ctx, req)
	require.NoError(t, err)
	require.True(t, proto.Equal(first, again))
	changed := proto.CloneOf(req)
	changed.Text = "never said"
	_, err = a.SendMessage(ctx, changed)
	requireReason(t, err, connect.CodeAlreadyExists, errorv1.Reason_REASON_CLIENT_MESSAGE_ID_REUSED)

	// A clock that jumps beyond all partitions: they are made by then.
	w.Clock.Advance(200 * 24 * time.Hour)
	a.say(id, "half a year on")
	require.Equal(t, []string{"last of March", "first of April", "half a year on"}, texts(b.log(id)))
	var spans int
	require.NoError(t, w.DB("messaging").QueryRow(ctx, "SELECT count(*) FROM entry_span WHERE conversation_id = $1", id).Scan(&spans))
	require.Equal(t, 3, spans)
}

func TestSendersAtOnce(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{H2C: true}, nil)
	replicas := []*servicetest.Instance{w.Instances("messaging")[0], w.Add(w.def)}
	const senders, each = 50, 12
	a, b, first := w.friends()
	second := a.talk(w.person())
	logs := []string{first, second}

	together(senders, func(i int) {
		// In the one log, each person has a replica: they share no row but the
		// conversation's. In the other, each sender changes it with every message.
		for n := range each {
			who, replica := a, replicas[(i+n)%2]
			if logs[i%2] == first {
				replica = replicas[0]
				if i%4 == 0 {
					who, replica = b, replicas[1]
				}
			}
			_, err := who.at(replica).SendMessage(w.t.Context(), message(logs[i%2], text(i, n)))
			require.NoError(t, err)
		}
	})
	for which, id := range logs {
		entries := a.log(id) // dense, which log checks
		require.Len(t, texts(entries), senders/2*each)
		next := map[string]int{}
		for i, e := range entries {
			require.EqualValues(t, i, e.GetOrdinal())
			if e.GetMessage() == nil {
				continue
			}
			who, n, _ := strings.Cut(e.GetMessage().GetText(), "/")
			require.Equal(t, text(0, next[who])[2:], n, "sender %s of log %d is out of order", who, which)
			next[who]++
		}
	}
	versions := map[string][]int64{}
	for _, ev := range w.Events("messaging", "message.created") {
		versions[ev.GetKey()] = append(versions[ev.GetKey()], ev.GetKeyVersion())
	}
	for _, id := range logs {
		slices.Sort(versions[id])
		require.Len(t, slices.Compact(versions[id]), senders/2*each, "each message is told")
		require.EqualValues(t, 2, versions[id][0])
		require.EqualValues(t, senders/2*each+1, versions[id][len(versions[id])-1])
	}
}

func TestSendMessageBesideOthers(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{Settings: append([]string{"PARLEY_MESSAGING_COMMITTERS=1"}, quick...)}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	_, _, foreign := w.friends()
	// A stand-in for data that only the database refuses.
	w.exec("ALTER TABLE entry ADD CONSTRAINT no_poison CHECK (position('poison'::bytea IN payload) = 0)")

	const n = 60
	errs := make([]error, n)
	release := w.lock(id)
	together(n+1, func(i int) {
		if i == n {
			w.untilWaiting(1) // a batch is on its way, the others gather behind it
			release()
			return
		}
		switch i % 5 {
		case 0:
			_, errs[i] = a.SendMessage(ctx, message(foreign, "refused"))
		case 1:
			_, errs[i] = a.SendMessage(ctx, message(id, "poison "+text(i, 0)))
		default:
			_, errs[i] = a.SendMessage(ctx, message(id, text(i, 0)))
		}
	})
	for i, err := range errs {
		switch i % 5 {
		case 0:
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
		case 1:
			requireReason(t, err, connect.CodeInternal, errorv1.Reason_REASON_INTERNAL)
		default:
			require.NoError(t, err)
		}
	}
	require.Len(t, texts(b.log(id)), n*3/5)
}

func TestSendMessageOverloaded(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{Settings: append([]string{
		"PARLEY_MESSAGING_COMMITTERS=1", "PARLEY_MESSAGING_COMMIT_BATCH=1", "PARLEY_MESSAGING_COMMIT_QUEUE=2",
	}, quick...)}, nil)
	a, b, id := w.friends()
	release := w.lock(id)
	defer release()
	const n = 8
	results := make(chan error, n)
	send := func() {
		_, err := a.SendMessage(context.WithoutCancel(t.Context()), message(id, "crowd"))
		results <- err
	}
	go send()
	w.untilWaiting(1) // it is in its transaction, and out of the queue
	for range n - 1 {
		go send()
	}
	// One is in its transaction, two wait, five are refused: at once.
	for range n - 3 {
		requireReason(t, <-results, connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED)
	}
	release()
	for range 3 {
		require.NoError(t, <-results)
	}
	require.Len(t, texts(b.log(id)), 3)
}

// lock holds a conversation's row in a transaction of somebody else.
func (w *world) lock(conversation string) (release func()) {
	w.t.Helper()
	tx, err := w.DB("messaging").Begin(w.t.Context())
	require.NoError(w.t, err)
	_, err = tx.Exec(w.t.Context(), "SELECT 1 FROM conversation WHERE id = $1 FOR UPDATE", conversation)
	require.NoError(w.t, err)
	return func() { _ = tx.Rollback(context.WithoutCancel(w.t.Context())) }
}

// untilWaiting returns when so many transactions wait for a lock.
func (w *world) untilWaiting(n int) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		var waiting int
		err := w.DB("messaging").QueryRow(w.t.Context(),
			"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		return err == nil && waiting >= n
	}, 10*time.Second, 2*time.Millisecond, "nobody waits for the lock")
}
