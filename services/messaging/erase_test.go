package messaging_test

import (
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

func deleted(id uuid.UUID) *eventv1.Event {
	return event.New("user.deleted", id.String(), 2, &userv1.UserDeleted{UserId: id.String()})
}

func TestForgetPerson(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)

	t.Run("LeavesTheLogWholeAndClosesTheConversation", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, conversation := w.friends()
		a.say(conversation, "one")
		b.say(conversation, "two")
		a.say(conversation, "three")
		before := b.log(conversation)
		synced, err := b.Sync(t.Context(), &messagingv1.SyncRequest{})
		require.NoError(t, err)
		pushes := w.Pushes(b.id)

		ev := deleted(a.id)
		w.Deliver("user", "messaging", ev)
		w.Deliver("user", "messaging", ev)
		push := pushes.Next(func(p *realtimev1.Push) bool { return p.GetConversation().GetId() == conversation })
		require.True(t, push.GetConversation().GetClosed())

		require.Equal(t, texts(before), texts(b.log(conversation)))
		for i, e := range b.log(conversation) {
			require.Equal(t, before[i].GetSenderId(), e.GetSenderId())
		}
		seen := b.get(conversation)
		require.True(t, seen.GetClosed())
		require.Len(t, seen.GetMembers(), 2)
		for _, m := range seen.GetMembers() {
			if m.GetUserId() == a.id.String() {
				require.Zero(t, m.GetReadSeq())
				require.Zero(t, m.GetDeliveredSeq())
			}
		}
		after, err := b.Sync(t.Context(), &messagingv1.SyncRequest{Cursor: synced.GetNextCursor()})
		require.NoError(t, err)
		require.Len(t, after.GetConversations(), 1, "who was away learns of it")
		require.True(t, after.GetConversations()[0].GetClosed())
		for _, p := range []*person{a, b} {
			_, err = p.SendMessage(t.Context(), message(conversation, "four"))
			requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONVERSATION_CLOSED)
		}
		var keys int
		require.NoError(t, w.DB("messaging").QueryRow(t.Context(), `SELECT count(*) FROM send_key WHERE sender_id = $1`, a.id).Scan(&keys))
		require.Zero(t, keys)
		reports := 0
		for _, report := range w.Events("messaging", "messaging.person_forgotten") {
			if report.GetKey() == a.id.String() {
				reports++
			}
		}
		require.Equal(t, 1, reports)
	})
	t.Run("NobodyStartsAConversationWithIt", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, unknown := w.person(), w.person(), w.stranger()
		w.Deliver("user", "messaging", deleted(a.id), deleted(unknown.id))
		for _, p := range []*person{a, unknown} {
			// Also when the registration comes late.
			w.Deliver("auth", "messaging", event.New("account.registered", p.id.String(), 1, &authv1.AccountRegistered{AccountId: p.id.String()}))
			_, err := b.CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: p.id.String()})
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
			_, err = p.CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: b.id.String()})
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
		}
	})
	t.Run("OthersTalkOn", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b, conversation := w.friends()
		c := w.person()
		gone := b.talk(c)
		w.Deliver("user", "messaging", deleted(c.id))
		require.True(t, b.get(gone).GetClosed())
		require.False(t, b.get(conversation).GetClosed())
		a.say(conversation, "still here")
	})
}

// Whatever comes between: in the end no conversation of a forgotten person is open.
func TestForgetWhileConversationsStart(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	leaving := w.person()
	others := make([]*person, 24)
	for i := range others {
		others[i] = w.person()
	}
	w.Publish("user", deleted(leaving.id))
	var group sync.WaitGroup
	for _, p := range others {
		group.Go(func() {
			res, err := p.CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: leaving.id.String()})
			if err == nil {
				_, _ = p.SendMessage(t.Context(), message(res.GetConversation().GetId(), "hello")) // stored or refused
			}
		})
	}
	group.Wait()
	w.Await("messaging", "messaging.person_forgotten", nil)
	require.Eventually(t, func() bool {
		var open int
		err := w.DB("messaging").QueryRow(t.Context(),
			`SELECT count(*) FROM conversation WHERE NOT closed AND $1 IN (direct_low, direct_high)`, leaving.id).Scan(&open)
		return err == nil && open == 0
	}, 10*time.Second, 20*time.Millisecond, "all are closed")
}
