package e2e_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/client"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// viewer is a device that shows presence and typing, and notes all it was told.
type viewer struct {
	*client.Device
	mu     sync.Mutex
	told   map[string][]realtimev1.PresenceState
	typing map[string]time.Time
}

// present is a device of a person on one gateway, until leave or the end of the
// test.
func (p *person) present(t *testing.T, gateway int) (v *viewer, leave func()) {
	t.Helper()
	v = &viewer{told: map[string][]realtimev1.PresenceState{}, typing: map[string]time.Time{}}
	v.Device = client.NewDevice(client.DeviceConfig{
		Config:       client.Config{URL: "ws://" + hostOf(p.sys, gateway) + "/v1/ws", Token: p.token, Device: realtimev1.DeviceKind_DEVICE_KIND_MOBILE},
		ReconnectCap: time.Second,
		OnPresence: func(presence *realtimev1.Presence) {
			v.mu.Lock()
			defer v.mu.Unlock()
			states := v.told[presence.GetUserId()]
			if len(states) == 0 || states[len(states)-1] != presence.GetState() {
				v.told[presence.GetUserId()] = append(states, presence.GetState())
			}
		},
		OnTyping: func(typing *messagingv1.Typing) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.typing[typing.GetUserId()] = typing.GetUntil().AsTime()
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = v.Run(ctx) // ends with ctx
	}()
	leave = func() {
		cancel()
		<-ended
	}
	t.Cleanup(leave)
	wait, stop := context.WithTimeout(ctx, soon)
	defer stop()
	_, err := v.Connected(wait)
	require.NoError(t, err, "connect")
	return v, leave
}

// states are all that was shown of a person, each change once.
func (v *viewer) states(id string) []realtimev1.PresenceState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]realtimev1.PresenceState(nil), v.told[id]...)
}

func (v *viewer) untilShows(t *testing.T, id string, state realtimev1.PresenceState) {
	t.Helper()
	require.Eventually(t, func() bool {
		states := v.states(id)
		return len(states) > 0 && states[len(states)-1] == state
	}, eventually, poll, "presence does not become %s", state)
}

// TestKilledGatewayPresence: the people of a gateway that is killed are offline
// after the grace, and nobody else flickers: not those on the other one, and not
// those who have come back there in time.
func TestKilledGatewayPresence(t *testing.T) {
	t.Parallel()
	const online, offline = realtimev1.PresenceState_PRESENCE_STATE_ONLINE, realtimev1.PresenceState_PRESENCE_STATE_OFFLINE
	sys := system.Start(t, system.Separate, system.Options{Env: []string{
		"PARLEY_GATEWAY_PRESENCE_LEASE=2s", "PARLEY_USER_PRESENCE_GRACE=8s",
	}})
	ada, lost, moved, calm := register(t, sys, 0), register(t, sys, 0), register(t, sys, 0), register(t, sys, 0)
	screen, _ := ada.present(t, 0)
	lost.present(t, 1)
	moved.present(t, 1)
	_, leave := calm.present(t, 0)
	screen.Watch(lost.id, moved.id, calm.id)
	for _, p := range []*person{lost, moved, calm} {
		screen.untilShows(t, p.id, online)
	}

	sys.Process("gateway-2").Kill9()
	moved.present(t, 0)
	screen.untilShows(t, lost.id, offline)
	for _, p := range []*person{moved, calm} {
		states := screen.states(p.id)
		require.Equal(t, online, states[len(states)-1])
		require.NotContains(t, states[firstOf(states, online):], offline, "nobody else flickers")
	}

	// Who leaves in good order is offline after the same grace.
	leave()
	screen.untilShows(t, calm.id, offline)

	// The lost one's client finds the gateway again when it is back.
	sys.Process("gateway-2").Start()
	screen.untilShows(t, lost.id, online)
}

func firstOf(states []realtimev1.PresenceState, state realtimev1.PresenceState) int {
	for i, s := range states {
		if s == state {
			return i
		}
	}
	return len(states)
}

// TestTypingCrossesGateways: who writes on one gateway is seen to on the other.
func TestTypingCrossesGateways(t *testing.T) {
	t.Parallel()
	sys := system.Start(t, system.Separate, system.Options{})
	ada, bob := register(t, sys, 0), register(t, sys, 1)
	var made *messagingv1.CreateDirectConversationResponse
	require.Eventually(t, func() bool { // until messaging has heard of bob
		var err error
		made, err = ada.messaging(0).CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: bob.id})
		return err == nil
	}, soon, poll)
	writes, _ := ada.present(t, 0)
	reads, _ := bob.present(t, 1)
	require.NoError(t, writes.SetTyping(t.Context(), made.GetConversation().GetId(), true))
	require.Eventually(t, func() bool {
		reads.mu.Lock()
		defer reads.mu.Unlock()
		return !reads.typing[ada.id].IsZero()
	}, soon, poll)
}
