package chaos

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/pkg/history"
)

// readLogs reads what is new in every member's log.
func (c *crowd) readLogs(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, k := range c.talks {
		for i, p := range k.members {
			group.Go(func() (err error) {
				k.logs[i], err = p.read(ctx, k.id, k.logs[i], c.intern)
				return err
			})
		}
	}
	return group.Wait()
}

// forgetLogs has the next reading begin at the beginning.
func (c *crowd) forgetLogs() {
	for _, k := range c.talks {
		k.logs = [2][]history.Entry{}
	}
}

// history is everything up to now. The crowd must be quiet.
func (c *crowd) history() history.History {
	h := history.History{Sends: c.rec.History().Sends}
	for _, k := range c.talks {
		for i, p := range k.members {
			h.Logs = append(h.Logs, history.Log{Conversation: k.id, Member: p.id, Entries: k.logs[i]})
		}
		for _, d := range k.devices {
			h.Views = append(h.Views, history.View{Conversation: k.id, Device: d.name, Entries: d.view()})
		}
	}
	return h
}

// messages is how many messages the logs hold.
func (c *crowd) messages() int {
	n := 0
	for _, k := range c.talks {
		for _, e := range k.logs[0] {
			if e.Message {
				n++
			}
		}
	}
	return n
}
