package messaging_test

import (
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

func (p *person) read(conversation string, seq int64) {
	p.w.t.Helper()
	_, err := p.MarkRead(p.w.t.Context(), &messagingv1.MarkReadRequest{ConversationId: conversation, Seq: seq})
	require.NoError(p.w.t, err)
}

func (p *person) delivered(conversation string, seq int64) {
	p.w.t.Helper()
	_, err := p.MarkDelivered(p.w.t.Context(), &messagingv1.MarkDeliveredRequest{ConversationId: conversation, Seq: seq})
	require.NoError(p.w.t, err)
}

// untilMarks waits until a person's own watermarks are these.
func (p *person) untilMarks(conversation string, read, delivered int64) {
	p.w.t.Helper()
	require.Eventually(p.w.t, func() bool {
		m := me(p, p.get(conversation))
		return m.GetReadSeq() == read && m.GetDeliveredSeq() == delivered
	}, 10*time.Second, 2*time.Millisecond, "the watermarks did not become %d and %d", read, delivered)
}

func TestReceipts(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()

	t.Run("RiseAndNeverFall", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		for range 5 {
			a.say(id, "unread") // seq 2 to 6
		}
		require.EqualValues(t, 5, b.get(id).GetUnread())
		require.Zero(t, a.get(id).GetUnread(), "one's own are read")

		b.delivered(id, 4)
		b.untilMarks(id, 0, 4)
		b.read(id, 3)
		b.untilMarks(id, 3, 4)
		require.EqualValues(t, 3, b.get(id).GetUnread())
		b.read(id, 2)
		b.read(id, 5)
		b.untilMarks(id, 5, 5) // reading implies delivery
		b.read(id, 1000)
		b.untilMarks(id, 6, 6) // and ends at the head
		require.Zero(t, b.get(id).GetUnread())
		require.EqualValues(t, 6, b.get(id).GetMembers()[0].GetReadSeq())
		a.say(id, "one more")
		require.EqualValues(t, 1, b.get(id).GetUnread())
		b.say(id, "an answer reads all before it")
		require.Zero(t, b.get(id).GetUnread())
	})
	t.Run("ArePushedToBoth", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		seq := a.say(id, "seen?")
		atA, atB := w.Pushes(a.id), w.Pushes(b.id)
		b.read(id, seq)
		for _, pushes := range []*servicetest.Pushes{atA, atB} {
			got := pushes.Next(func(p *realtimev1.Push) bool { return p.GetReceipt() != nil }).GetReceipt()
			require.Equal(t, id, got.GetConversationId())
			require.Equal(t, b.id.String(), got.GetUserId())
			require.Equal(t, seq, got.GetReadSeq())
			require.Equal(t, seq, got.GetDeliveredSeq())
		}
	})
	t.Run("OfAStranger", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, _, id := w.friends()
		stranger := w.person()
		_, err := stranger.MarkRead(ctx, &messagingv1.MarkReadRequest{ConversationId: id, Seq: 1})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
		_, err = stranger.MarkDelivered(ctx, &messagingv1.MarkDeliveredRequest{ConversationId: uuid.NewString(), Seq: 1})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
	})
	t.Run("AfterLeaving", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		a.say(id, "two")
		b.read(id, 1) // b is known as a member from here on
		b.untilMarks(id, 1, 1)
		w.exec("UPDATE member SET left_seq = 2 WHERE conversation_id = $1 AND user_id = $2", id, b.id)
		a.say(id, "three")
		b.read(id, 3)
		b.untilMarks(id, 2, 2) // where b has left

		c, d, other := w.friends()
		c.say(other, "two")
		w.exec("UPDATE member SET left_seq = 2 WHERE conversation_id = $1 AND user_id = $2", other, d.id)
		_, err := d.MarkRead(ctx, &messagingv1.MarkReadRequest{ConversationId: other, Seq: 2})
		requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_NOT_A_MEMBER)
	})
}

func TestReceiptsAreGathered(t *testing.T) {
	t.Parallel()
	// Nothing is stored before the service stops: then all at once.
	w := start(t, servicetest.Options{Settings: []string{"PARLEY_MESSAGING_RECEIPT_INTERVAL=1s"}}, nil)
	a, b, first := w.friends()
	second := b.talk(a)
	require.Equal(t, first, second)
	third := b.talk(w.person())
	for range 20 {
		a.say(first, "x")
	}
	for seq := int64(2); seq <= 21; seq++ {
		b.delivered(first, seq)
		b.read(first, seq)
	}
	b.read(third, 1)
	require.NoError(t, w.Instances("messaging")[0].Stop())

	w.Add(w.def)
	w.Clock.Advance(time.Minute) // what the stopped one left is the relay's by now
	require.EqualValues(t, 21, me(b, b.get(first)).GetReadSeq(), "a stop stores what was gathered")
	seen := w.Events("messaging", "message.seen")
	require.LessOrEqual(t, len(seen), 2, "forty-one calls, one or two flushes")
	marks := map[string]int64{}
	for _, ev := range seen {
		for _, m := range payload[messagingv1.MessageSeen](t, ev).GetWatermarks() {
			marks[m.GetConversationId()] = m.GetSeq()
			require.Equal(t, b.id.String(), m.GetUserId())
		}
	}
	require.Equal(t, int64(21), marks[first])
}

func TestReceiptsTellOnlyWhatRose(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	a, b, id := w.friends()
	seq := a.say(id, "x")
	b.read(id, seq)
	b.untilMarks(id, seq, seq)
	b.read(id, seq)
	b.delivered(id, 1)
	last := a.say(id, "y")
	b.delivered(id, last) // its flush is after those that changed nothing
	b.untilMarks(id, seq, last)
	require.Len(t, w.Events("messaging", "message.seen"), 1)
	require.Len(t, w.Events("messaging", "message.delivered"), 2)
}

func TestReceiptsOutliveADatabaseError(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	a, b, id := w.friends()
	seq := a.say(id, "x")
	w.exec("ALTER TABLE member ADD CONSTRAINT frozen CHECK (read_seq < 2) NOT VALID")
	b.read(id, seq)
	require.Eventually(t, func() bool {
		var failed int64
		err := w.DB("messaging").QueryRow(t.Context(), "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()").Scan(&failed)
		return err == nil && failed > 0
	}, 10*time.Second, 5*time.Millisecond, "no flush has failed")
	w.exec("ALTER TABLE member DROP CONSTRAINT frozen")
	b.untilMarks(id, seq, seq)
}

// payload unpacks an event.
func payload[T any, P interface {
	*T
	proto.Message
}](t testing.TB, ev *eventv1.Event) P {
	t.Helper()
	out := P(new(T))
	require.NoError(t, ev.GetPayload().UnmarshalTo(out))
	return out
}
