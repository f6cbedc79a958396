package load

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/history"
)

// maxTold bounds the violations that are told in words.
const maxTold = 20

// Verdict is what the judge found.
type Verdict struct {
	// Checked says that everything was recorded and judged.
	Checked bool `json:"checked"`
	// Messages were judged, in Conversations.
	Messages      int64 `json:"messages"`
	Conversations int64 `json:"conversations"`
	// Violations by rule; at most a hundred of one conversation are counted.
	Violations map[string]int64 `json:"violations"`
	// Told are the first of them.
	Told []string `json:"told"`
	// Failed says why the judge could not finish; what was measured is good all the same.
	Failed string `json:"failed,omitempty"`
}

func (v *Verdict) add(other *Verdict) {
	v.Checked = v.Checked && other.Checked
	v.Messages += other.Messages
	v.Conversations += other.Conversations
	for rule, n := range other.Violations {
		v.Violations[rule] += n
	}
	v.Failed = cmp.Or(v.Failed, other.Failed)
	v.Told = append(v.Told, other.Told...)
	v.Told = v.Told[:min(len(v.Told), maxTold)]
}

// judge reads every conversation's log from the server, repairs what was missed and compares. One conversation at a time is expanded into what package history takes, so the
// judge needs little memory beside the record.
func (r *run) judge(ctx context.Context) *Verdict {
	v := &Verdict{Checked: r.keep, Violations: map[string]int64{}}
	if !r.keep {
		return v
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callsAtOnce)
	for _, t := range r.allTalks() {
		group.Go(func() error {
			one, err := t.judge(ctx)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			v.add(one)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		v.Checked, v.Failed = false, err.Error()
	}
	return v
}

// judge compares one conversation. An order matters: what was acknowledged before a log was read must stand in it, and what a
// device has beyond the log's end came later. Messages may still be under way.
func (t *talk) judge(ctx context.Context) (*Verdict, error) {
	t.mu.Lock()
	h := history.History{Sends: t.historySends()}
	t.mu.Unlock()
	end := int64(math.MaxInt64)
	for i := range t.sides {
		log, err := t.readLog(ctx, i)
		if err != nil {
			return nil, err
		}
		h.Logs = append(h.Logs, log)
		if n := len(log.Entries); n > 0 {
			end = min(end, log.Entries[n-1].Seq)
		} else {
			end = 0
		}
	}
	for i := range t.sides {
		if err := again(ctx, func() error { return t.catchUp(ctx, i) }); err != nil {
			return nil, err
		}
		h.Logs[i].Entries = slices.DeleteFunc(h.Logs[i].Entries, func(e history.Entry) bool { return e.Seq > end })
		t.mu.Lock()
		h.Views = append(h.Views, t.historyView(i, end))
		t.mu.Unlock()
	}
	v := &Verdict{Checked: true, Messages: int64(len(h.Sends)), Conversations: 1, Violations: map[string]int64{}}
	for _, found := range history.Check(h) {
		v.Violations[string(found.Rule)]++
		if len(v.Told) < maxTold {
			v.Told = append(v.Told, found.String())
		}
	}
	return v, nil
}

func (t *talk) textOf(counter uint32) string {
	var text uuidText
	formatUUID(&text, t.clientID(counter, t.message(counter).at))
	return string(text[:])
}

func (t *talk) historySends() []history.Send {
	origin := fmt.Sprintf("process-%d", t.run.process)
	sends := make([]history.Send, 0, len(t.sends))
	for i := range t.sends {
		m := &t.sends[i]
		sends = append(sends, history.Send{
			Origin: origin, Conversation: t.id, Sender: t.sides[m.sender].id, ClientID: t.textOf(t.first + uint32(i)),
			Device: t.sides[m.sender].id, Lane: t.id, Content: m.content, Tries: 1,
			Invoked: int64(m.invoked), Completed: int64(m.completed), Outcome: m.outcome, Seq: int64(m.seq),
		})
	}
	return sends
}

// historyView is what a side has up to the end of the log.
func (t *talk) historyView(i int, end int64) history.View {
	d := t.sides[i]
	view := history.View{Conversation: t.id, Device: d.id, Entries: make([]history.Entry, 0, len(d.seen))}
	for at, s := range d.seen {
		if odd, ok := d.odd[at]; ok && odd.Seq > end || !ok && int64(s.seq) > end {
			break
		}
		if odd, ok := d.odd[at]; ok {
			view.Entries = append(view.Entries, odd)
			continue
		}
		sender := ""
		if s.sender < 2 {
			sender = t.sides[s.sender].id
		}
		view.Entries = append(view.Entries, history.Entry{
			Seq: int64(s.seq), Ordinal: int64(s.ordinal), Sender: sender, ClientID: t.textOf(s.counter),
			Content: s.content, At: s.at, Message: true,
		})
	}
	return view
}
