package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

const (
	procedureList     = "/parley.messaging.v1.MessagingService/ListConversations"
	procedureMessages = "/parley.messaging.v1.MessagingService/ListMessages"
	procedureOwn      = "/parley.user.v1.UserService/GetUser"
	procedureUsers    = "/parley.user.v1.UserService/BatchGetUsers"

	// startsAtOnce bounds the starts under way in one process; a later one waits, and its time counts from when it
	// was due.
	startsAtOnce = 64
	// startPage and startHistory are what a client shows first.
	startPage, startHistory = 50, 30
)

// starts has people open the app at a rate, on their open connections, until an instant or the end of loading. What
// has begun by then goes on.
func (r *run) starts(ctx, loading context.Context, at, until time.Time) {
	share := r.opts.Starts / float64(r.opts.Procs)
	if share <= 0 {
		return
	}
	random := rand.New(rand.NewPCG(r.opts.Seed, uint64(r.process)+2<<32))
	interval := time.Duration(float64(time.Second) / share)
	slots := make(chan struct{}, startsAtOnce)
	var under sync.WaitGroup
	defer under.Wait()
	for due := at; due.Before(until); due = due.Add(interval) {
		if sleepUntil(loading, due) != nil {
			return
		}
		r.mu.Lock()
		s := r.sockets[random.IntN(len(r.sockets))]
		r.mu.Unlock()
		if s == nil {
			continue // reconnecting
		}
		select {
		case slots <- struct{}{}:
		case <-loading.Done():
			return
		}
		under.Go(func() {
			defer func() { <-slots }()
			if err := r.appStart(ctx, s); err != nil {
				r.meter.fail(r.meter.at(due), err)
				return
			}
			r.meter.count(r.meter.at(due), func(c *Counts) { c.Starts++; c.StartTime.add(time.Since(due)) })
		})
	}
}

// appStart is what a client asks before it shows anything: the list of conversations, oneself and everybody in it,
// and the newest messages of the first conversation.
func (r *run) appStart(ctx context.Context, s *socket) error {
	var list messagingv1.ListConversationsResponse
	if err := s.call(ctx, procedureList, &messagingv1.ListConversationsRequest{PageSize: startPage}, &list); err != nil {
		return fmt.Errorf("list conversations: %w", err)
	}
	if err := s.call(ctx, procedureOwn, &userv1.GetUserRequest{}, &userv1.GetUserResponse{}); err != nil {
		return fmt.Errorf("read own profile: %w", err)
	}
	people := peopleOf(list.GetConversations())
	if len(people) == 0 {
		return nil
	}
	if err := s.call(ctx, procedureUsers, &userv1.BatchGetUsersRequest{UserIds: people}, &userv1.BatchGetUsersResponse{}); err != nil {
		return fmt.Errorf("read profiles: %w", err)
	}
	first := &messagingv1.ListMessagesRequest{ConversationId: list.GetConversations()[0].GetId(), PageSize: startHistory}
	if err := s.call(ctx, procedureMessages, first, &messagingv1.ListMessagesResponse{}); err != nil {
		return fmt.Errorf("read messages: %w", err)
	}
	return nil
}

// peopleOf are the members of conversations, each once.
func peopleOf(conversations []*messagingv1.Conversation) []string {
	known := map[string]bool{}
	var people []string
	for _, c := range conversations {
		for _, m := range c.GetMembers() {
			if id := m.GetUserId(); !known[id] {
				known[id] = true
				people = append(people, id)
			}
		}
	}
	return people
}
