package client_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/client"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

const (
	online  = realtimev1.PresenceState_PRESENCE_STATE_ONLINE
	offline = realtimev1.PresenceState_PRESENCE_STATE_OFFLINE
)

// watched answers a watch: everybody is as people says, or unknown.
func (g *gateway) watched(w *realtimev1.Watch) *realtimev1.Reply {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watches = append(g.watches, w)
	res := &realtimev1.Watched{Watching: uint32(len(w.GetUserIds()))}
	for _, id := range w.GetUserIds() {
		p := g.people[id]
		if p == nil {
			p = &realtimev1.Presence{UserId: id}
		}
		res.Presences = append(res.Presences, p)
	}
	body, _ := proto.Marshal(res) // of our own making
	return &realtimev1.Reply{Result: &realtimev1.Reply_Response{Response: body}}
}

func (g *gateway) tell(p *realtimev1.Presence) {
	g.each(func(s *socket) {
		s.send(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{Event: &realtimev1.Push_Presence{Presence: p}}}})
	})
}

func presence(id string, state realtimev1.PresenceState, version int64) *realtimev1.Presence {
	return &realtimev1.Presence{UserId: id, State: state, Version: version}
}

// faces is what a device shows of people.
type faces struct {
	mu    sync.Mutex
	shown map[string]*realtimev1.Presence
}

func (f *faces) show(p *realtimev1.Presence) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown[p.GetUserId()] = p
}

func (f *faces) requireShows(t *testing.T, want *realtimev1.Presence) {
	t.Helper()
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return proto.Equal(want, f.shown[want.GetUserId()])
	}, patience, time.Millisecond, "%s is not shown", want)
}

func TestDeviceWatches(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.people = map[string]*realtimev1.Presence{"bob": presence("bob", online, 5)}
	f := &faces{shown: map[string]*realtimev1.Presence{}}
	d := run(t, g, client.DeviceConfig{OnPresence: f.show})
	d.Watch("bob", "eve")
	f.requireShows(t, presence("bob", online, 5))
	f.requireShows(t, &realtimev1.Presence{UserId: "eve"})

	g.tell(presence("bob", offline, 6))
	f.requireShows(t, presence("bob", offline, 6))
	g.tell(presence("bob", online, 4)) // late
	g.tell(presence("eve", online, 1))
	f.requireShows(t, presence("eve", online, 1))
	f.requireShows(t, presence("bob", offline, 6))

	g.mu.Lock()
	g.people["bob"] = presence("bob", online, 7)
	g.mu.Unlock()
	d.Cut()
	f.requireShows(t, presence("bob", online, 7))
	g.mu.Lock()
	g.people["bob"] = presence("bob", offline, 8)
	g.mu.Unlock()
	g.each(func(s *socket) {
		s.send(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}})
	})
	f.requireShows(t, presence("bob", offline, 8))
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.watches {
		require.True(t, w.GetReplace())
		require.Equal(t, []string{"bob", "eve"}, w.GetUserIds())
	}
}

func TestDeviceTypes(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	got := make(chan *messagingv1.Typing, 1)
	d := run(t, g, client.DeviceConfig{OnTyping: func(typing *messagingv1.Typing) { got <- typing }})
	require.NoError(t, d.SetTyping(t.Context(), "c", true))
	g.mu.Lock()
	require.Equal(t, 1, g.calls[messagingv1connect.MessagingServiceSetTypingProcedure])
	g.mu.Unlock()
	g.each(func(s *socket) {
		s.send(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{
			Event: &realtimev1.Push_Typing{Typing: &messagingv1.Typing{ConversationId: "c", UserId: "bob"}},
		}}})
	})
	require.Equal(t, "bob", (<-got).GetUserId())
}

// A gateway that is frozen answers nothing and breaks no connection.
func TestFrozenGatewayIsNoticed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	conn := dial(t, g, nil)
	g.freeze(true)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := conn.Call(ctx, messagingv1connect.MessagingServiceSyncProcedure, "", &messagingv1.SyncRequest{}, &messagingv1.SyncResponse{})
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
	select {
	case <-conn.Done():
	case <-time.After(2 * patience):
		require.Fail(t, "the connection is believed to live")
	}
	require.Greater(t, time.Since(began), 4*time.Second, "it had its time to answer")
	g.freeze(false)
}

// A call that is slow for itself says nothing about the connection.
func TestSlowCallLeavesTheConnection(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	hang := make(chan struct{})
	g.hang = func(procedure string) {
		if procedure == messagingv1connect.MessagingServiceSyncProcedure {
			<-hang
		}
	}
	conn := dial(t, g, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := conn.Call(ctx, messagingv1connect.MessagingServiceSyncProcedure, "", &messagingv1.SyncRequest{}, &messagingv1.SyncResponse{})
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
	require.NoError(t, conn.Ping(t.Context()))
	close(hang)
	require.NoError(t, conn.Err())
}
