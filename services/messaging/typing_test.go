package messaging_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/messaging"
)

func (p *person) types(conversation string, typing bool) error {
	_, err := p.SetTyping(p.w.t.Context(), &messagingv1.SetTypingRequest{ConversationId: conversation, Typing: typing})
	return err
}

func isTyping(p *realtimev1.Push) bool { return p.GetTyping() != nil }

func TestTyping(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)

	t.Run("IsToldToTheOther", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		own, others := w.Pushes(a.id), w.Pushes(b.id)
		require.NoError(t, a.by(w).types(id, true))
		typing := others.Next(isTyping).GetTyping()
		require.Equal(t, id, typing.GetConversationId())
		require.Equal(t, a.id.String(), typing.GetUserId())
		require.Equal(t, servicetest.Noon.Add(6*time.Second), typing.GetUntil().AsTime())
		require.NoError(t, a.by(w).types(id, false), "to stop is another call")
		require.Equal(t, servicetest.Noon, others.Next(isTyping).GetTyping().GetUntil().AsTime())
		a.by(w).say(id, "after it")
		require.Nil(t, own.Next(func(p *realtimev1.Push) bool { return isTyping(p) || p.GetEntry() != nil }).GetTyping(), "not to the own devices")
	})
	t.Run("IsLimitedPerDevice", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, id := w.friends()
		require.NoError(t, a.types(id, true))
		requireReason(t, a.types(id, true), connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
		require.NoError(t, b.types(id, true))
		require.NoError(t, a.types(a.talk(w.person()), true), "another conversation")
	})
	t.Run("IsForMembers", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, _, id := w.friends()
		requireReason(t, w.person().types(id, true), connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
		requireReason(t, w.person().types(uuid.NewString(), true), connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
		requireReason(t, w.person().types("here", true), connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT)
	})
}

// The limit counts over replicas, and passes.
func TestTypingLimitIsShared(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	first := w.Instances("messaging")[0]
	second := w.Add(w.def)
	a, _, id := w.friends()
	require.NoError(t, a.at(first).types(id, true))
	requireReason(t, a.at(second).types(id, true), connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
	w.Clock.Advance(2 * time.Second)
	require.NoError(t, a.at(second).types(id, true))
}

// Who could not send is not seen to write either.
func TestTypingOfWhoMayNotSend(t *testing.T) {
	t.Parallel()
	p := &policy{}
	w := start(t, servicetest.Options{}, p)
	a, b, id := w.friends()
	p.set(func(p *policy) { p.denied = map[messaging.PermissionCheck]bool{{Actor: b.id, Target: a.id}: true} })
	_, err := b.SendMessage(t.Context(), message(id, "may not"))
	requireReason(t, err, connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED)
	pushes := w.Pushes(a.id)
	require.NoError(t, b.types(id, true), "and does not learn it")
	other := w.person()
	conversation := other.talk(a)
	require.NoError(t, other.types(conversation, true))
	require.Equal(t, other.id.String(), pushes.Next(isTyping).GetTyping().GetUserId())
}

// That somebody writes who is invisible would show that they are there.
func TestTypingOfTheInvisible(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	a, b, id := w.friends()
	settings := func(version int64, invisible bool) *eventv1.Event {
		return event.New("user.presence_settings_changed", a.id.String(), version,
			&userv1.UserPresenceSettingsChanged{UserId: a.id.String(), Invisible: invisible})
	}
	w.Deliver("user", "messaging", settings(5, true), settings(4, false))
	pushes := w.Pushes(b.id)
	require.NoError(t, a.types(id, true), "and it is no error")
	w.Deliver("user", "messaging", settings(6, false))
	w.Clock.Advance(2 * time.Second)
	require.NoError(t, a.types(id, true))
	require.Equal(t, servicetest.Noon.Add(8*time.Second), pushes.Next(isTyping).GetTyping().GetUntil().AsTime(), "only from now on")
}
