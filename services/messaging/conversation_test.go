package messaging_test

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/servicetest"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

func TestCreateDirectConversation(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()

	t.Run("BothStartAtOnceAndGetOne", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b := w.person(), w.person()
		found := make([]string, 20)
		together(len(found), func(i int) {
			who, other := a, b
			if i%2 == 1 {
				who, other = b, a
			}
			res, err := who.CreateDirectConversation(ctx, &messagingv1.CreateDirectConversationRequest{UserId: other.id.String()})
			if err == nil {
				found[i] = res.GetConversation().GetId()
			}
		})
		for _, id := range found {
			require.NotEmpty(t, id)
			require.Equal(t, found[0], id)
		}
		var told int
		for _, ev := range w.Events("messaging", "conversation.created") {
			if ev.GetKey() == found[0] {
				told++
				require.EqualValues(t, 1, ev.GetKeyVersion())
			}
		}
		require.Equal(t, 1, told)
	})
	t.Run("BeginsWithAnEntryAndIsPushedToBoth", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a, b := w.person(), w.person()
		atA, atB := w.Pushes(a.id), w.Pushes(b.id)
		id := a.talk(b)
		for who, pushes := range map[*person]*servicetest.Pushes{a: atA, b: atB} {
			push := pushes.Next(func(p *realtimev1.Push) bool { return p.GetConversation() != nil })
			require.Equal(t, id, push.GetConversation().GetId())
			require.Equal(t, who.id.String(), push.GetConversation().GetMembers()[0].GetUserId())
		}
		entries := b.log(id)
		require.Len(t, entries, 1)
		require.NotNil(t, entries[0].GetStarted())
		require.Equal(t, a.id.String(), entries[0].GetSenderId())
		seen := b.get(id)
		require.EqualValues(t, 1, seen.GetHeadSeq())
		require.Zero(t, seen.GetHeadOrdinal())
		require.Zero(t, seen.GetUnread())
		require.Len(t, seen.GetMembers(), 2)
		require.NotNil(t, seen.GetLastEntry().GetStarted())
	})
	t.Run("NobodyKnown", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, err := w.person().CreateDirectConversation(ctx, &messagingv1.CreateDirectConversationRequest{UserId: uuid.NewString()})
		requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND)
	})
	t.Run("WithOneself", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		a := w.person()
		_, err := a.CreateDirectConversation(ctx, &messagingv1.CreateDirectConversationRequest{UserId: a.id.String()})
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_SELF_CONVERSATION)
	})
	t.Run("Anonymous", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		_, err := (&person{w: w}).anonymous().GetConversation(ctx, &messagingv1.GetConversationRequest{ConversationId: uuid.NewString()})
		requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING)
	})
}

func TestGetConversation(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	_, _, id := w.friends()
	for name, conversation := range map[string]string{"Foreign": id, "Unknown": uuid.NewString()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := w.in(t)
			_, err := w.person().GetConversation(t.Context(), &messagingv1.GetConversationRequest{ConversationId: conversation})
			requireReason(t, err, connect.CodeNotFound, errorv1.Reason_REASON_CONVERSATION_NOT_FOUND)
		})
	}
}

func TestListConversations(t *testing.T) {
	t.Parallel()
	w := start(t, servicetest.Options{}, nil)
	ctx := t.Context()
	a := w.person()
	var made []string
	for range 5 {
		w.Clock.Advance(1e9)
		made = append([]string{a.talk(w.person())}, made...)
	}
	w.Clock.Advance(1e9)
	a.say(made[4], "to the top") // the oldest becomes the newest
	want := append([]string{made[4]}, made[:4]...)

	t.Run("LastActiveFirstOverPages", func(t *testing.T) {
		t.Parallel()
		var got []string
		token := ""
		for {
			res, err := a.ListConversations(ctx, &messagingv1.ListConversationsRequest{PageSize: 2, PageToken: token})
			require.NoError(t, err)
			got = append(got, ids(res.GetConversations())...)
			if token = res.GetNextPageToken(); token == "" {
				break
			}
		}
		require.Equal(t, want, got)
	})
	t.Run("NobodyElsesToken", func(t *testing.T) {
		t.Parallel()
		w := w.in(t)
		res, err := a.ListConversations(ctx, &messagingv1.ListConversationsRequest{PageSize: 2})
		require.NoError(t, err)
		_, err = w.person().ListConversations(ctx, &messagingv1.ListConversationsRequest{PageToken: res.GetNextPageToken()})
		requireReason(t, err, connect.CodeInvalidArgument, errorv1.Reason_REASON_PAGE_TOKEN_INVALID)
	})
}
