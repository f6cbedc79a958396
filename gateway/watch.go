package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// askPeople is how many BatchGetPresence takes.
const askPeople = 200

// watchLane is the lane of a socket's Watches. No client can name it: it is longer
// than a name may be.
var watchLane = strings.Repeat("watch", maxLane)

// watchRequest is a Watch whose ids are ids.
type watchRequest struct {
	add     []uuid.UUID // as asked for, doubles too
	remove  []uuid.UUID
	replace bool
}

// watch takes a Watch in, as call does a Call.
func (c *connection) watch(id uint32, w *realtimev1.Watch, wait time.Duration) {
	if c.isOpen(id) {
		c.end(closeBadFrame, reasonBadFrame)
		return
	}
	if wait > 0 {
		c.refuse(id, errRateLimited(wait, "too many frames"))
		return
	}
	request, err := c.gw.parseWatch(w)
	if err != nil {
		c.refuse(id, err)
		return
	}
	c.begin(&pending{id: id, lane: watchLane, watch: request}, 0)
}

func (g *Gateway) parseWatch(w *realtimev1.Watch) (*watchRequest, error) {
	limit := g.cfg.Socket.Watches
	if len(w.GetUserIds()) > limit || len(w.GetRemoveUserIds()) > limit {
		return nil, errTooManyWatches(limit)
	}
	request := &watchRequest{replace: w.GetReplace()}
	var err error
	if request.add, err = parseIDs(w.GetUserIds()); err != nil {
		return nil, err
	}
	if request.remove, err = parseIDs(w.GetRemoveUserIds()); err != nil {
		return nil, err
	}
	return request, nil
}

func parseIDs(texts []string) ([]uuid.UUID, error) {
	ids := make([]uuid.UUID, 0, len(texts))
	for _, text := range texts {
		id, err := uuid.Parse(text)
		if err != nil || len(text) != 36 { // the library reads other spellings as well
			return nil, rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT, "a watch names people by their ids")
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func errTooManyWatches(limit int) *connect.Error {
	return rpc.WithMetadata(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_TOO_MANY_WATCHES,
		"a connection may watch %d people", limit), "limit", strconv.Itoa(limit))
}

// keyOf is under what a socket's person watches somebody.
func (c *connection) keyOf(id uuid.UUID) uuid.UUID {
	if id == c.user {
		return c.gw.presence.ownKey(id)
	}
	return id
}

// performWatch carries a Watch out. Those who are new are watched before they are
// asked for and told of only when it is known that they may be seen: so nothing is
// missed between the answer and the watch, and nothing is told too soon.
func (p *pending) performWatch(ctx context.Context, header http.Header) (*realtimev1.Watched, error) {
	table := p.c.gw.presence.watches
	list := p.c.watchList()
	if list == nil {
		return nil, rpc.Error(connect.CodeCanceled, errorv1.Reason_REASON_CANCELED, "the socket has gone")
	}
	before := table.keys(list)
	next := p.nextWatches(before)
	if limit := p.c.gw.cfg.Socket.Watches; len(next) > limit {
		return nil, errTooManyWatches(limit)
	}
	var fresh []uuid.UUID
	for _, id := range p.watch.add {
		if key := p.c.keyOf(id); next[key] && table.add(list, key) {
			fresh = append(fresh, key)
		}
	}
	seen, err := p.look(ctx, header, list, p.watch.add)
	if err != nil {
		for _, key := range fresh {
			table.remove(list, key)
		}
		return nil, err
	}
	for _, key := range before {
		if !next[key] {
			table.remove(list, key)
		}
	}
	watched := &realtimev1.Watched{}
	for _, id := range p.watch.add {
		presence, visible := seen[id]
		if !visible {
			table.remove(list, p.c.keyOf(id))
			presence = &realtimev1.Presence{UserId: id.String()}
		}
		watched.Presences = append(watched.Presences, presence)
	}
	watched.Watching = uint32(len(table.keys(list)))
	return watched, nil
}

// nextWatches is the list as it is to be.
func (p *pending) nextWatches(before []uuid.UUID) map[uuid.UUID]bool {
	next := make(map[uuid.UUID]bool, len(before)+len(p.watch.add))
	if !p.watch.replace {
		for _, key := range before {
			next[key] = true
		}
	}
	for _, id := range p.watch.add {
		next[p.c.keyOf(id)] = true
	}
	for _, id := range p.watch.remove {
		delete(next, p.c.keyOf(id))
	}
	return next
}

// look asks for people and has their watches told from then on. Whoever changed
// between the answer and the watch is asked for once more; after that, what came
// meanwhile comes as a push, or as a Resync (recheck).
func (p *pending) look(ctx context.Context, header http.Header, list *watchList, people []uuid.UUID) (map[uuid.UUID]*realtimev1.Presence, error) {
	seen := make(map[uuid.UUID]*realtimev1.Presence, len(people))
	for range 2 {
		var outdated []uuid.UUID
		for len(people) > 0 {
			n := min(len(people), askPeople)
			for _, id := range people[:n] {
				p.c.gw.presence.watches.ask(list, p.c.keyOf(id))
			}
			presences, err := p.ask(ctx, header, people[:n])
			if err != nil {
				return nil, err
			}
			for id, presence := range presences {
				seen[id] = presence
				if p.c.gw.presence.watches.grant(list, p.c.keyOf(id), presence.GetVersion()) {
					outdated = append(outdated, id)
				}
			}
			people = people[n:]
		}
		if people = outdated; len(people) == 0 {
			break
		}
	}
	return seen, nil
}

// ask asks the user service, with the token of the person who watches: what comes
// back is what they may see.
func (p *pending) ask(ctx context.Context, header http.Header, people []uuid.UUID) (map[uuid.UUID]*realtimev1.Presence, error) {
	request := &userv1.BatchGetPresenceRequest{}
	for _, id := range people {
		request.UserIds = append(request.UserIds, id.String())
	}
	body, err := proto.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	answer, err := p.offer(ctx, p.c.gw.presence.ask, header, body)
	if err != nil {
		return nil, err
	}
	response := &userv1.BatchGetPresenceResponse{}
	if err := proto.Unmarshal(answer, response); err != nil {
		return nil, fmt.Errorf("decode the answer: %w", err)
	}
	presences := make(map[uuid.UUID]*realtimev1.Presence, len(people))
	for _, presence := range response.GetPresences() {
		if id, err := uuid.Parse(presence.GetUserId()); err == nil {
			presences[id] = presence
		}
	}
	return presences, nil
}

// watchList is the socket's list, made at its first Watch; nil if the socket has
// gone.
func (c *connection) watchList() *watchList {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watching == nil && !c.finished && !c.unwatched {
		c.watching = c.gw.presence.watches.join(c)
	}
	return c.watching
}

// unwatch ends what a socket that goes has watched.
func (c *connection) unwatch() {
	c.mu.Lock()
	list := c.watching
	c.unwatched = true
	c.mu.Unlock()
	if list != nil {
		c.gw.presence.watches.leave(list)
	}
}
