package load

import (
	"context"
	"math/rand/v2"
	"time"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// keeper does once a second what a client does beside messages: it prolongs tokens,
// syncs after silence and asks for what a lost push should have brought. Until ctx ends.
func (r *run) keeper(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.beat.Add(1)
			r.renewDue(now)
			r.syncSilent(ctx)
			for _, t := range r.started() {
				t.stalled(now, patience)
			}
		}
	}
}

// started are the talks, once all are.
func (r *run) started() []*talk {
	if !r.sending.Load() {
		return nil
	}
	return r.allTalks()
}

// renewDue prolongs connections of whose token a fifth is left. Tokens of one run were made
// together, so a few are prolonged early each second rather than all at once.
func (r *run) renewDue(now time.Time) {
	life := time.Duration(r.mint.LifeSeconds) * time.Second
	r.mu.Lock()
	var due []*socket
	for _, s := range r.sockets {
		if s == nil {
			continue
		}
		left := time.Unix(s.expires.Load(), 0).Sub(now)
		if left < life/5 || left < life*2/5 && rand.N(life/5/time.Second+1) == 0 {
			due = append(due, s)
		}
	}
	r.mu.Unlock()
	for _, s := range due {
		p, err := r.newToken(s.person)
		if err != nil {
			r.meter.fail(now.UnixNano(), err)
			continue
		}
		s.renew(p.Token, p.Expires, func(err error) {
			if err != nil {
				r.meter.fail(time.Now().UnixNano(), err)
				return
			}
			r.meter.note(func(c *Counts) { c.Renewed++ })
		})
	}
}

// syncSilent calls Sync for connections that heard nothing for as long as the
// server advised, and up to a fifth of it more.
func (r *run) syncSilent(ctx context.Context) {
	r.mu.Lock()
	var silent []*socket
	beat := r.beat.Load()
	for _, s := range r.sockets {
		if s == nil || s.idle <= 0 {
			continue
		}
		seconds := int64(s.idle / time.Second)
		if over := beat - s.heard.Load() - seconds; over >= 0 && rand.Int64N(max(seconds/5-over, 1)) == 0 {
			s.heard.Store(beat)
			silent = append(silent, s)
		}
	}
	r.mu.Unlock()
	for _, s := range silent {
		r.readers.Go(func() { _ = r.sync(ctx, s) }) // counted there
	}
}

// sync calls Sync until nothing more is told.
func (r *run) sync(ctx context.Context, s *socket) error {
	began := time.Now()
	req := &messagingv1.SyncRequest{Cursor: s.cursor}
	for {
		var res messagingv1.SyncResponse
		if err := s.call(ctx, procedureSync, req, &res); err != nil {
			r.meter.fail(began.UnixNano(), err)
			return err
		}
		s.cursor = res.GetNextCursor()
		if !res.GetHasMore() {
			r.meter.count(began.UnixNano(), func(c *Counts) { c.Syncs++; c.SyncTime.add(time.Since(began)) })
			return nil
		}
		req.Cursor = s.cursor
	}
}
