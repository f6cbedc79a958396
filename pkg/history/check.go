package history

import (
	"cmp"
	"fmt"
	"slices"
)

// Rule names a promise.
type Rule string

// The promises that Check judges.
const (
	// Lost: an acknowledged message does not stand in a member's log, or not where
	// the acknowledgement said.
	Lost Rule = "lost"
	// Hole: a log or a view does not run from its first seq by ones.
	Hole Rule = "hole"
	// Doubled: one client id stands twice in a log, or a view shows a seq twice.
	Doubled Rule = "doubled"
	// Invented: a log holds a message that nobody sent, that was refused, or with
	// another sender or content.
	Invented Rule = "invented"
	// Reordered: a message that was acknowledged before another was sent stands
	// behind it, or one lane's messages do not stand in the order of sending.
	Reordered Rule = "reordered"
	// Diverged: two members' logs, or a device's view and the log, differ.
	Diverged Rule = "diverged"
	// Behind: a device's view ends before the log does, or misses its start.
	Behind Rule = "behind"
	// Miscounted: ordinals do not count the messages, or created_at falls.
	Miscounted Rule = "miscounted"
	// Unread: a conversation in which somebody sent has no log in the history, so
	// nothing could be judged.
	Unread Rule = "unread"
)

// Violation is one broken promise.
type Violation struct {
	Rule         Rule
	Conversation string
	Detail       string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s in %s: %s", v.Rule, v.Conversation, v.Detail)
}

// maxViolations bounds the answer: a broken run breaks everything, and the first
// hundred tell why.
const maxViolations = 100

// checker gathers violations.
type checker struct{ found []Violation }

func (c *checker) addf(r Rule, conversation, format string, args ...any) {
	if len(c.found) < maxViolations {
		c.found = append(c.found, Violation{r, conversation, fmt.Sprintf(format, args...)})
	}
}

// Check judges a history and returns every broken promise, at most a hundred.
// None means: every acknowledged message stands exactly once in every member's
// log, where the acknowledgement said; the logs have no hole and agree; nothing
// was invented; order was kept per lane and in real time; every device showed
// the whole log, once, in order.
func Check(h History) []Violation {
	c := &checker{}
	sends := map[string][]Send{}
	for _, s := range h.Sends {
		sends[s.Conversation] = append(sends[s.Conversation], s)
	}
	reference := map[string]Log{}
	for _, l := range h.Logs {
		first, seen := reference[l.Conversation]
		if !seen {
			reference[l.Conversation] = l
			c.log(l)
			c.contents(l, sends[l.Conversation])
			c.order(l, sends[l.Conversation])
			continue
		}
		c.same(first, l)
	}
	for conversation := range sends {
		if _, ok := reference[conversation]; !ok {
			c.addf(Unread, conversation, "%d sends, but nobody read the log", len(sends[conversation]))
		}
	}
	for _, v := range h.Views {
		if l, ok := reference[v.Conversation]; ok {
			c.view(v, l)
		} else {
			c.addf(Unread, v.Conversation, "device %s showed %d entries, but nobody read the log", v.Device, len(v.Entries))
		}
	}
	slices.SortStableFunc(c.found, func(a, b Violation) int { return cmp.Compare(a.Conversation, b.Conversation) })
	return c.found
}

// log judges a log by itself: dense, no client id twice, counts and times right.
func (c *checker) log(l Log) {
	next, ordinal, at := int64(1), int64(0), int64(0)
	where := map[[2]string]int64{}
	for _, e := range l.Entries {
		if e.Seq != next {
			c.addf(Hole, l.Conversation, "%s expected seq %d, found %d", l.Member, next, e.Seq)
		}
		next = e.Seq + 1
		if e.Message {
			ordinal++
			key := [2]string{e.Sender, e.ClientID}
			if first, ok := where[key]; ok {
				c.addf(Doubled, l.Conversation, "message %s of %s stands at %d and %d", e.ClientID, e.Sender, first, e.Seq)
			}
			where[key] = e.Seq
		}
		if e.Ordinal != ordinal {
			c.addf(Miscounted, l.Conversation, "seq %d has ordinal %d, counted %d", e.Seq, e.Ordinal, ordinal)
			ordinal = e.Ordinal
		}
		if e.At < at {
			c.addf(Miscounted, l.Conversation, "created_at falls at seq %d", e.Seq)
		}
		at = e.At
	}
}

// contents compares a log with what was sent.
func (c *checker) contents(l Log, sends []Send) {
	stands := map[[2]string]Entry{}
	for _, e := range l.Entries {
		if e.Message {
			stands[[2]string{e.Sender, e.ClientID}] = e
		}
	}
	sent := map[[2]string]Send{}
	for _, s := range sends {
		key := [2]string{s.Sender, s.ClientID}
		sent[key] = s
		if s.Outcome != Acked {
			continue
		}
		e, ok := stands[key]
		switch {
		case !ok:
			c.addf(Lost, l.Conversation, "message %s of %s was acknowledged at seq %d", s.ClientID, s.Sender, s.Seq)
		case e.Seq != s.Seq:
			c.addf(Lost, l.Conversation, "message %s of %s was acknowledged at seq %d, stands at %d", s.ClientID, s.Sender, s.Seq, e.Seq)
		}
	}
	for key, e := range stands {
		s, ok := sent[key]
		switch {
		case !ok:
			c.addf(Invented, l.Conversation, "seq %d (message %s of %s) was never sent", e.Seq, e.ClientID, e.Sender)
		case s.Outcome == Refused:
			c.addf(Invented, l.Conversation, "seq %d (message %s of %s) was refused", e.Seq, e.ClientID, e.Sender)
		case s.Content != e.Content:
			c.addf(Invented, l.Conversation, "seq %d (message %s of %s) has another content", e.Seq, e.ClientID, e.Sender)
		}
	}
}

// order judges real-time order over all senders of one origin, and lane order.
//
// Real time: whatever was acknowledged before X was sent stands in front of X. It
// is enough to walk the log backwards and keep the earliest acknowledgement seen,
// so the check costs a sort and not a comparison of every pair.
func (c *checker) order(l Log, sends []Send) {
	byOrigin := map[string][]Send{}
	for _, s := range sends {
		if s.Outcome == Acked {
			byOrigin[s.Origin] = append(byOrigin[s.Origin], s)
		}
	}
	for _, own := range byOrigin {
		slices.SortFunc(own, func(a, b Send) int { return cmp.Compare(a.Seq, b.Seq) })
		c.realTime(l, own)
		c.lanes(l, own)
	}
}

func (c *checker) realTime(l Log, own []Send) {
	var earliest *Send // of those behind: the one that was acknowledged first
	for i := len(own) - 1; i >= 0; i-- {
		s := &own[i]
		if earliest != nil && earliest.Completed < s.Invoked {
			c.addf(Reordered, l.Conversation, "message %s (seq %d) was acknowledged before message %s (seq %d) was sent",
				earliest.ClientID, earliest.Seq, s.ClientID, s.Seq)
		}
		if earliest == nil || s.Completed < earliest.Completed {
			earliest = s
		}
	}
}

func (c *checker) lanes(l Log, own []Send) {
	type lane struct{ device, name string }
	last := map[lane]Send{}
	for _, s := range own { // by seq
		if s.Lane == "" || s.Tries != 1 {
			continue
		}
		k := lane{s.Device, s.Lane}
		if before, ok := last[k]; ok && before.Invoked > s.Invoked {
			c.addf(Reordered, l.Conversation, "lane %s of %s: message %s (seq %d) was sent after message %s (seq %d)",
				s.Lane, s.Device, before.ClientID, before.Seq, s.ClientID, s.Seq)
		}
		last[k] = s
	}
}

// same compares two members' logs.
func (c *checker) same(a, b Log) {
	if len(a.Entries) != len(b.Entries) {
		c.addf(Diverged, a.Conversation, "%s reads %d entries, %s reads %d", a.Member, len(a.Entries), b.Member, len(b.Entries))
	}
	for i := range min(len(a.Entries), len(b.Entries)) {
		if a.Entries[i] != b.Entries[i] {
			c.addf(Diverged, a.Conversation, "%s and %s read different entries at seq %d", a.Member, b.Member, a.Entries[i].Seq)
			return
		}
	}
}

// view compares what a device showed with the log: the whole of it, once, in
// order.
func (c *checker) view(v View, l Log) {
	next := int64(1)
	for _, e := range v.Entries {
		switch {
		case e.Seq < next:
			c.addf(Doubled, v.Conversation, "device %s showed seq %d again", v.Device, e.Seq)
			continue
		case e.Seq > next:
			c.addf(Hole, v.Conversation, "device %s showed seq %d after %d", v.Device, e.Seq, next-1)
		}
		next = e.Seq + 1
		if e.Seq > int64(len(l.Entries)) || e.Seq < 1 {
			c.addf(Diverged, v.Conversation, "device %s showed seq %d, the log ends at %d", v.Device, e.Seq, len(l.Entries))
		} else if l.Entries[e.Seq-1] != e {
			c.addf(Diverged, v.Conversation, "device %s showed another entry at seq %d than the log", v.Device, e.Seq)
		}
	}
	if int(next) <= len(l.Entries) {
		c.addf(Behind, v.Conversation, "device %s ends at seq %d, the log at %d", v.Device, next-1, len(l.Entries))
	}
}
