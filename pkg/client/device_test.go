package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// screen is a running device and what it shows of one conversation.
type screen struct {
	*client.Device

	ended chan error

	mu     sync.Mutex
	shown  []int64
	resets int
}

func run(t *testing.T, g *gateway, cfg client.DeviceConfig) *screen {
	t.Helper()
	s := &screen{ended: make(chan error, 1)}
	cfg.URL, cfg.ReconnectCap = g.url, 50*time.Millisecond
	if cfg.Token == nil {
		cfg.Token = token
	}
	cfg.OnEntry = func(e *messagingv1.Entry) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shown = append(s.shown, e.GetSeq())
	}
	cfg.OnReset = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shown, s.resets = nil, s.resets+1
	}
	s.Device = client.NewDevice(cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ended <- s.Run(t.Context())
	}()
	t.Cleanup(func() { <-done })
	return s
}

// requireShows waits until exactly the entries up to seq are shown, in order.
func (s *screen) requireShows(t *testing.T, seq int64) {
	t.Helper()
	want := make([]int64, 0, seq)
	for i := range seq {
		want = append(want, i+1)
	}
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.shown) >= len(want)
	}, patience, time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Equal(t, want, s.shown)
}

func TestDeviceShowsEverythingOnce(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for range 7 { // more than two pages
		g.write("c")
	}
	s := run(t, g, client.DeviceConfig{})
	s.requireShows(t, 7)
	next := g.write("c")
	g.push(next)
	g.push(next) // doubled
	s.requireShows(t, 8)
	g.write("c")
	g.push(g.write("c")) // the push before it was lost
	s.requireShows(t, 10)
	g.push(next) // late
	g.push(g.write("c"))
	s.requireShows(t, 11)
}

func TestDeviceRepairsAfterReconnect(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.write("c")
	s := run(t, g, client.DeviceConfig{})
	s.requireShows(t, 1)
	g.write("c")
	s.Cut()
	s.requireShows(t, 2)
	require.Equal(t, []string{"", "next"}, g.asked(&g.syncs), "the second Sync goes on from the first")
}

func TestDeviceRepairsAfterResyncAndSilence(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.write("c")
	s := run(t, g, client.DeviceConfig{})
	s.requireShows(t, 1)
	g.write("c")
	g.each(func(s *socket) {
		s.send(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}})
	})
	s.requireShows(t, 2)

	idle := run(t, g, client.DeviceConfig{IdleInterval: 50 * time.Millisecond})
	idle.requireShows(t, 2)
	g.write("c")
	idle.requireShows(t, 3)
}

func TestDeviceDropsItsStateOnReset(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.reset = 2
	for range 3 {
		g.write("c")
	}
	s := run(t, g, client.DeviceConfig{})
	s.requireShows(t, 3)
	g.mu.Lock()
	g.log["c"] = g.log["c"][:2] // an older backup
	g.mu.Unlock()
	s.Cut()
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.resets == 1
	}, patience, time.Millisecond)
	s.requireShows(t, 2)
}

func TestDeviceStartsAnewWhenItsSeqIsBeyondTheHead(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.write("c")
	g.refuse = func(procedure string, n int) *realtimev1.Error {
		if procedure == messagingv1connect.MessagingServiceListEventsProcedure && n == 2 {
			return refusal(connect.CodeOutOfRange, errorv1.Reason_REASON_RESET_REQUIRED)
		}
		return nil
	}
	s := run(t, g, client.DeviceConfig{})
	s.requireShows(t, 1)
	g.write("c")
	g.push(g.write("c"))
	s.requireShows(t, 3)
	require.Empty(t, g.asked(&g.syncs)[1], "Sync from the beginning")
}

func TestDeviceRenewsItsToken(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.life = time.Second
	run(t, g, client.DeviceConfig{})
	require.Eventually(t, func() bool { return len(g.asked(&g.tokens)) >= 2 }, patience, time.Millisecond)
	require.Equal(t, []string{""}, g.asked(&g.syncs), "on the same connection")
}

func TestDeviceEndsWithItsSession(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.write("c")
	s := run(t, g, client.DeviceConfig{})
	s.requireShows(t, 1)
	g.close(client.CloseUnauthentic, "SESSION_REVOKED")
	closed := &client.CloseError{}
	require.ErrorAs(t, <-s.ended, &closed)
}

func TestSendRetriesWhileTheOutcomeIsOpen(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.refuse = func(procedure string, n int) *realtimev1.Error {
		switch {
		case procedure != messagingv1connect.MessagingServiceSendMessageProcedure:
			return nil
		case n <= 2:
			return refusal(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
		case n == 4:
			return refusal(connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED)
		}
		return nil
	}
	s := run(t, g, client.DeviceConfig{})
	retries := 0
	res, err := s.Send(t.Context(), &messagingv1.SendMessageRequest{ConversationId: "c", ClientMessageId: "m"}, func() { retries++ })
	require.NoError(t, err)
	require.EqualValues(t, 3, res.GetSeq())
	require.Equal(t, 2, retries)
	require.Equal(t, []string{"m", "m", "m"}, g.asked(&g.sends), "under the same id")

	_, err = s.Send(t.Context(), &messagingv1.SendMessageRequest{ConversationId: "c", ClientMessageId: "n"}, nil)
	require.Equal(t, connect.CodePermissionDenied, connect.CodeOf(err), "a refusal is final: %v", err)
}

func TestSendEndsWithItsContext(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	away := client.NewDevice(client.DeviceConfig{Config: client.Config{URL: g.url, Token: func(context.Context) (string, error) {
		return "", errors.New("logged out")
	}}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := away.Send(ctx, &messagingv1.SendMessageRequest{ConversationId: "c"}, nil)
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
}
