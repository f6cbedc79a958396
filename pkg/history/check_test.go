package history_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/history"
)

// healthy is a run of a system that works: Ada and Ben write in turn, in one
// conversation, each with two devices.
func healthy() history.History {
	r := history.NewRecorder("one")
	entries := []history.Entry{{Seq: 1, Sender: "ada", At: 1}}
	for i := range 10 {
		sender := []string{"ada", "ben"}[i%2]
		id, text := fmt.Sprintf("m%d", i), fmt.Sprintf("text %d", i)
		p := r.Invoke(history.Send{
			Conversation: "c", Sender: sender, ClientID: id, Device: sender + "-phone", Lane: "c", Content: history.Hash(text),
		})
		seq := int64(i + 2)
		p.Ack(seq)
		entries = append(entries, history.Entry{
			Seq: seq, Ordinal: int64(i + 1), Sender: sender, ClientID: id, Content: history.Hash(text), At: int64(i + 2), Message: true,
		})
	}
	for _, member := range []string{"ada", "ben"} {
		r.Read(history.Log{Conversation: "c", Member: member, Entries: append([]history.Entry(nil), entries...)})
		for _, device := range []string{member + "-phone", member + "-laptop"} {
			for _, e := range entries {
				r.Saw("c", device, e)
			}
		}
	}
	return r.History()
}

func TestCheck(t *testing.T) {
	t.Parallel()
	drop := func(es []history.Entry, i int) []history.Entry {
		return append(append([]history.Entry(nil), es[:i]...), es[i+1:]...)
	}
	logs := func(h *history.History, change func([]history.Entry) []history.Entry) {
		for i := range h.Logs {
			h.Logs[i].Entries = change(h.Logs[i].Entries)
		}
	}
	tests := []struct {
		name  string
		plant func(h *history.History)
		want  []history.Rule
	}{
		{"Healthy", func(*history.History) {}, nil},
		{"UnknownOutcomeMayStand", func(h *history.History) { h.Sends[3].Outcome, h.Sends[3].Completed = history.Unknown, 0 }, nil},
		{"UnknownOutcomeMayBeMissing", func(h *history.History) {
			h.Sends = append(h.Sends, history.Send{Conversation: "c", Sender: "ada", ClientID: "open"})
		}, nil},
		{"LostTail", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry { return es[:len(es)-1] })
			for i := range h.Views {
				h.Views[i].Entries = h.Views[i].Entries[:len(h.Views[i].Entries)-1]
			}
		}, []history.Rule{history.Lost}},
		{"LostTailOfOneDevice", func(h *history.History) {
			h.Views[0].Entries = h.Views[0].Entries[:len(h.Views[0].Entries)-1]
		}, []history.Rule{history.Behind}},
		{"LostTailOfOneMember", func(h *history.History) {
			h.Logs[1].Entries = h.Logs[1].Entries[:len(h.Logs[1].Entries)-1]
		}, []history.Rule{history.Diverged}},
		{"LostStartOfOneDevice", func(h *history.History) { h.Views[0].Entries = h.Views[0].Entries[1:] }, []history.Rule{history.Hole}},
		{"Hole", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry { return drop(es, 4) })
		}, []history.Rule{history.Hole, history.Lost}},
		{"HoleInOneView", func(h *history.History) { h.Views[2].Entries = drop(h.Views[2].Entries, 4) }, []history.Rule{history.Hole}},
		{"SwapBehindTheAcknowledgements", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry {
				es[4].ClientID, es[6].ClientID = es[6].ClientID, es[4].ClientID
				es[4].Content, es[6].Content = es[6].Content, es[4].Content
				return es
			})
		}, []history.Rule{history.Lost}},
		{"SwapOfOneSender", func(h *history.History) { h.Sends[2].Seq, h.Sends[4].Seq = h.Sends[4].Seq, h.Sends[2].Seq }, []history.Rule{history.Reordered}},
		{"SwapOfTwoSenders", func(h *history.History) {
			// No lane orders them: only that one was acknowledged before the other was sent. Whoever reads sees no fault.
			h.Sends[2].Seq, h.Sends[3].Seq = h.Sends[3].Seq, h.Sends[2].Seq
			swap := func(es []history.Entry) []history.Entry {
				a, b := &es[h.Sends[2].Seq-1], &es[h.Sends[3].Seq-1]
				a.Sender, b.Sender = b.Sender, a.Sender
				a.ClientID, b.ClientID = b.ClientID, a.ClientID
				a.Content, b.Content = b.Content, a.Content
				return es
			}
			logs(h, swap)
			for i := range h.Views {
				h.Views[i].Entries = swap(h.Views[i].Entries)
			}
		}, []history.Rule{history.Reordered}},
		{"SwapInAPipelinedLane", func(h *history.History) {
			// Both were under way at once, so only the lane orders them.
			h.Sends[2].Completed, h.Sends[4].Completed = 1000, 1001
			h.Sends[2].Seq, h.Sends[4].Seq = h.Sends[4].Seq, h.Sends[2].Seq
		}, []history.Rule{history.Reordered}},
		{"SwapInOneView", func(h *history.History) {
			es := h.Views[1].Entries
			es[4], es[5] = es[5], es[4]
		}, []history.Rule{history.Hole, history.Doubled}},
		{"Double", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry {
				again := es[5]
				again.Seq, again.Ordinal, again.At = 12, 11, 12
				return append(es, again)
			})
		}, []history.Rule{history.Doubled}},
		{"DoubleInOneView", func(h *history.History) {
			h.Views[3].Entries = append(h.Views[3].Entries, h.Views[3].Entries[5])
		}, []history.Rule{history.Doubled}},
		{"OtherContentInOneView", func(h *history.History) { h.Views[0].Entries[3].Content++ }, []history.Rule{history.Diverged}},
		{"Invented", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry {
				return append(es, history.Entry{Seq: 12, Ordinal: 11, Sender: "ben", ClientID: "ghost", At: 12, Message: true})
			})
		}, []history.Rule{history.Invented}},
		{"RefusedAndStored", func(h *history.History) { h.Sends[5].Outcome = history.Refused }, []history.Rule{history.Invented}},
		{"OtherContent", func(h *history.History) { h.Sends[5].Content++ }, []history.Rule{history.Invented}},
		{"OrdinalNotCounted", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry { es[10].Ordinal++; return es })
		}, []history.Rule{history.Miscounted}},
		{"TimeFalls", func(h *history.History) {
			logs(h, func(es []history.Entry) []history.Entry { es[10].At = 1; return es })
		}, []history.Rule{history.Miscounted}},
		{"NobodyRead", func(h *history.History) { h.Logs = nil }, []history.Rule{history.Unread}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := healthy()
			tt.plant(&h)
			found := history.Check(h)
			if tt.want == nil {
				require.Empty(t, found)
				return
			}
			rules := map[history.Rule]bool{}
			for _, v := range found {
				rules[v.Rule] = true
			}
			for _, want := range tt.want {
				require.Contains(t, rules, want, "found: %v", found)
			}
		})
	}
}

func TestMergeKeepsRealTimeOrderWithinOneOrigin(t *testing.T) {
	t.Parallel()
	// Two recorders start their ticks at one: what looks like "acknowledged before
	// sent" across them means nothing.
	a, b := history.NewRecorder("a"), history.NewRecorder("b")
	pa := a.Invoke(history.Send{Conversation: "c", Sender: "ada", ClientID: "1"})
	pa.Ack(2)
	for range 5 { // b's ticks run ahead of a's
		b.Invoke(history.Send{Conversation: "c", Sender: "ben", ClientID: "x"}).Refuse()
	}
	pb := b.Invoke(history.Send{Conversation: "c", Sender: "ben", ClientID: "2"})
	pb.Ack(1)
	a.Read(history.Log{Conversation: "c", Member: "ada", Entries: []history.Entry{
		{Seq: 1, Ordinal: 1, Sender: "ben", ClientID: "2", At: 1, Message: true},
		{Seq: 2, Ordinal: 2, Sender: "ada", ClientID: "1", At: 2, Message: true},
	}})
	require.Empty(t, history.Check(history.Merge(a.History(), b.History())))
}
