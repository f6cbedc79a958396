package token_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
)

func TestARevokedSessionIsRefusedAlsoWhenRemembered(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	claims := k.claims()
	raw, otherRaw := k.sign(t, claims), k.sign(t, k.claims())
	_, err := k.verifier.Verify(t.Context(), raw)
	require.NoError(t, err)

	var told []uuid.UUID
	k.revoked.Notify(func(id uuid.UUID) { told = append(told, id) })
	k.revoked.Add(claims.SessionID, k.clock.Now())
	k.revoked.Add(claims.SessionID, k.clock.Now())
	require.Equal(t, []uuid.UUID{claims.SessionID}, told, "told once")

	_, err = k.verifier.Verify(t.Context(), raw)
	require.ErrorIs(t, err, token.ErrRevoked)
	_, err = k.verifier.Verify(t.Context(), otherRaw)
	require.NoError(t, err)
}

func TestRevocationsAreRememberedAsLongAsTokensLive(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	id := uuid.New()
	k.revoked.Add(id, k.clock.Now())
	k.clock.Advance(life)
	require.True(t, k.revoked.Revoked(id))
	k.clock.Advance(2 * time.Minute)
	require.False(t, k.revoked.Revoked(id))

	k.revoked.Notify(func(uuid.UUID) { t.Error("an old revocation is no news") })
	k.revoked.Add(uuid.New(), k.clock.Now().Add(-life-time.Hour))
}

func TestRevocationsFollowTheBus(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	bus, err := event.Connect(t.Context(), event.Config{URL: testkit.NATS(t).URL, Name: "token-test"}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(bus.Close)
	_, err = bus.EnsureStream(t.Context(), "auth")
	require.NoError(t, err)
	revoke := func(key string) {
		ev := event.New("session.revoked", key, 1, nil)
		require.NoError(t, event.Complete(t.Context(), ev, k.clock.Now()))
		data, err := proto.Marshal(ev)
		require.NoError(t, err)
		_, err = bus.JetStream().Publish(t.Context(), event.Subject("auth", "session.revoked"), data)
		require.NoError(t, err)
	}
	before, after := uuid.New(), uuid.New()
	revoke(before.String())
	revoke("no id at all")

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = k.revoked.Follow(ctx, bus) })
	t.Cleanup(func() { cancel(); running.Wait() })
	select {
	case <-k.revoked.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("the past revocations did not come")
	}
	require.True(t, k.revoked.Revoked(before), "the past is known when it is ready")
	revoke(after.String())
	require.Eventually(t, func() bool { return k.revoked.Revoked(after) }, 10*time.Second, 5*time.Millisecond)
}
