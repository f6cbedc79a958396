package gateway

import (
	"encoding/binary"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// typingFrame is a push that somebody types, as it comes off the bus.
func typingFrame(conversation, user string) *realtimev1.ServerFrame {
	return &realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{
		Event: &realtimev1.Push_Typing{Typing: &messagingv1.Typing{ConversationId: conversation, UserId: user}},
	}}}
}

// typingOf is what the generated code reads of a push: the two ids, if they are.
func typingOf(payload []byte) (conversation, user uuid.UUID, ok bool) {
	var frame realtimev1.ServerFrame
	if proto.Unmarshal(payload, &frame) != nil {
		return conversation, user, false
	}
	typing := frame.GetPush().GetTyping()
	conversation, err := uuid.Parse(typing.GetConversationId())
	if err != nil {
		return conversation, user, false
	}
	user, err = uuid.Parse(typing.GetUserId())
	return conversation, user, err == nil
}

// FuzzClassify holds that a push is taken for typing, which a slow socket may go
// without, only if the generated code reads one in it, about the same two; and that
// each one in the form in which we send it is.
func FuzzClassify(f *testing.F) {
	one, two := uuid.NewSHA1(uuid.Nil, []byte("one")).String(), uuid.NewSHA1(uuid.Nil, []byte("two")).String()
	for _, frame := range []*realtimev1.ServerFrame{
		typingFrame(one, two), typingFrame(one, one), typingFrame(strings.ToUpper(one), two), typingFrame(one, ""), typingFrame("", ""),
		{Id: 1, Frame: typingFrame(one, two).GetFrame()},
		{Frame: &realtimev1.ServerFrame_Pong{}},
		{},
	} {
		payload, err := proto.Marshal(frame)
		require.NoError(f, err)
		f.Add(payload)
		f.Add(append(payload, 0x08, 0x01))
	}
	f.Add([]byte{0x22, 0x02, 0x2a, 0x7f})
	f.Fuzz(func(t *testing.T, payload []byte) {
		conversation, user, there := typingOf(payload)
		var want softKey
		for i := range want {
			want[i] = conversation[i] ^ user[i]
		}
		if is, key := classify(payload); is == kindTyping {
			require.True(t, there)
			require.Equal(t, want, *key)
		} else {
			require.Nil(t, key)
		}
		if there {
			ours, err := proto.Marshal(typingFrame(conversation.String(), user.String()))
			require.NoError(t, err)
			is, key := classify(ours)
			require.Equal(t, kindTyping, is)
			require.Equal(t, want, *key)
		}
	})
}

// FuzzWatchedIDs holds that people are named in one spelling only.
func FuzzWatchedIDs(f *testing.F) {
	id := uuid.NewSHA1(uuid.Nil, []byte("one")).String()
	for _, text := range []string{id, strings.ToUpper(id), "{" + id + "}", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""), "", "x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ids, err := parseIDs([]string{id, text})
		if err != nil {
			return
		}
		require.Len(t, ids, 2)
		require.Equal(t, strings.ToLower(text), ids[1].String())
	})
}

// FuzzLastFrame holds that what is seen of an answer does not depend on the pieces
// in which it passes by, that the memory for it is bounded, and that its code is
// one of few.
func FuzzLastFrame(f *testing.F) {
	raw := func(flags byte, body string) []byte {
		head := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(body)))
		return append(head, body...)
	}
	message := raw(0, "hello")
	f.Add(append(append([]byte{}, message...), raw(trailersOfWeb, "grpc-status: 5\r\ngrpc-message: no\r\n")...), uint8(3), true)
	f.Add(append(append([]byte{}, message...), raw(endOfStream, `{"error":{"code":"aborted"}}`)...), uint8(1), false)
	f.Add(append(append([]byte{}, message...), raw(endOfStream, `{}`)...), uint8(7), false)
	f.Add(raw(endOfStream|compressedFrame, "\x1f\x8b nothing"), uint8(5), false)
	f.Add(raw(trailersOfWeb, "grpc-status: 77")[:12], uint8(0), true)
	f.Fuzz(func(t *testing.T, data []byte, piece uint8, web bool) {
		kind := "application/connect+proto"
		if web {
			kind = "application/grpc-web+proto"
		}
		see := func(size int) *answer {
			a := &answer{ResponseWriter: nobody{http.Header{
				"Content-Type": {kind}, "Connect-Content-Encoding": {"gzip"}, "Grpc-Encoding": {"gzip"},
			}}, status: http.StatusOK}
			for rest := data; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				n, err := a.Write(rest[:min(size, len(rest))])
				require.NoError(t, err)
				require.Equal(t, min(size, len(rest)), n)
			}
			require.LessOrEqual(t, len(a.last.body), mostOfLastFrame)
			return a
		}
		whole, pieces := see(max(1, len(data))), see(1+int(piece))
		require.Equal(t, whole.code(), pieces.code())
		require.NotContains(t, whole.code(), "code_")
	})
}

// nobody reads the answer.
type nobody struct{ header http.Header }

func (n nobody) Header() http.Header         { return n.header }
func (n nobody) Write(p []byte) (int, error) { return len(p), nil }
func (n nobody) WriteHeader(int)             {}
