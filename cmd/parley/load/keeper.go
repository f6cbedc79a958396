package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
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
				t.stalled(r.meter.at(now), patience)
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
			r.meter.fail(r.meter.at(now), err)
			continue
		}
		s.renew(p.Token, p.Expires, func(err error) {
			if err != nil {
				r.meter.fail(r.meter.now(), err)
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
	s.syncing.Lock()
	defer s.syncing.Unlock()
	began := r.meter.now()
	req := &messagingv1.SyncRequest{Cursor: s.cursor}
	for {
		var res messagingv1.SyncResponse
		if err := s.call(ctx, procedureSync, req, &res); err != nil {
			r.meter.fail(began, err)
			return err
		}
		s.cursor = res.GetNextCursor()
		if !res.GetHasMore() {
			r.meter.count(began, func(c *Counts) { c.Syncs++; c.SyncTime.add(time.Duration(r.meter.now() - began)) })
			return nil
		}
		req.Cursor = s.cursor
	}
}

// watch has a connection watch as many people as a client shows at once: those around its person in the file, who are
// the ones that `parley seed --circle` makes acquainted. A state that is not told counts as unseen.
func (r *run) watch(ctx context.Context, s *socket) error {
	people := r.around(s.person)
	if len(people) == 0 {
		return nil
	}
	body, err := s.ask(ctx, func(w *writer, id uint32) []byte { return w.watch(id, people) })
	var watched realtimev1.Watched
	if err == nil {
		err = proto.Unmarshal(body, &watched)
	}
	if err != nil {
		r.meter.fail(r.meter.now(), fmt.Errorf("watch: %w", err))
		return fmt.Errorf("watch: %w", err)
	}
	unseen := int32(0)
	for _, p := range watched.GetPresences() {
		if p.GetState() == realtimev1.PresenceState_PRESENCE_STATE_UNSPECIFIED {
			unseen++
		}
	}
	s.watching.Store(int32(watched.GetWatching()))
	s.unseen.Store(unseen)
	return nil
}

// around are the people whom a person watches: half of them before, half after it in this process's part of the file.
func (r *run) around(person int) []string {
	n := len(r.people)
	list := make([]string, 0, r.opts.Watch)
	for k := 1; len(list) < min(r.opts.Watch, n-1); k++ {
		list = append(list, r.people[(person+k)%n].ID.String())
		if len(list) < min(r.opts.Watch, n-1) {
			list = append(list, r.people[(person-k%n+n)%n].ID.String())
		}
	}
	return list
}

// watchAll does it for every connection that does not watch anybody yet. Who was told nothing of somebody asks again,
// sooner than the half minute that a real client waits.
func (r *run) watchAll(ctx context.Context) error {
	const tries = 5
	return r.eachSocket(ctx, func(ctx context.Context, s *socket) error {
		if s.watching.Load() > 0 && s.unseen.Load() == 0 {
			return nil
		}
		for range tries {
			if err := r.watch(ctx, s); err != nil || s.unseen.Load() == 0 {
				return err
			}
			if err := sleepUntil(ctx, time.Now().Add(time.Second)); err != nil {
				return err
			}
		}
		return nil
	})
}

// begin is what a client does after the welcome that begins a socket, and on resync, for one without a talk: Sync, and
// the watch list. Errors are counted there.
func (r *run) begin(ctx context.Context, s *socket) {
	if r.opts.Sync && r.sync(ctx, s) != nil {
		return
	}
	_ = r.watch(ctx, s)
}

// eachSocket runs fn for every connection, some at once.
func (r *run) eachSocket(ctx context.Context, fn func(context.Context, *socket) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callsAtOnce)
	for _, s := range r.connected() {
		group.Go(func() error { return fn(ctx, s) })
	}
	return group.Wait()
}

// connected are the connections of now.
func (r *run) connected() []*socket {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*socket
	for _, s := range r.sockets {
		if s != nil {
			list = append(list, s)
		}
	}
	return list
}
