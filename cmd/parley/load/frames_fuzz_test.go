package load

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/testkit"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// FuzzDecodeFrame holds that what the generated code writes is read by our own
// decoder as the same, and that nothing else breaks it.
func FuzzDecodeFrame(f *testing.F) {
	said := &messagingv1.Entry{
		ConversationId: "c", Seq: 42, Ordinal: 40, SenderId: "s", CreatedAt: timestamppb.New(timestamppb.Now().AsTime()), ClientMessageId: "m",
		Body: &messagingv1.Entry_Message{Message: &messagingv1.Message{Text: "hello"}},
	}
	response, err := proto.Marshal(&messagingv1.ListEventsResponse{Entries: []*messagingv1.Entry{said, said}, HasMore: true})
	require.NoError(f, err)
	for _, frame := range []*realtimev1.ServerFrame{
		{Frame: &realtimev1.ServerFrame_Push{Push: &realtimev1.Push{Event: &realtimev1.Push_Entry{Entry: said}}}},
		{Id: 9, Frame: &realtimev1.ServerFrame_Reply{Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Response{Response: response}}}},
		{Id: 9, Frame: &realtimev1.ServerFrame_Reply{Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Error{Error: &realtimev1.Error{Code: "aborted"}}}}},
		{Id: 1, Frame: &realtimev1.ServerFrame_Welcome{Welcome: &realtimev1.Welcome{UserId: "u"}}},
		{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}},
		{},
	} {
		data, err := proto.Marshal(frame)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte{0x1a, 0})
	f.Add([]byte{0x1a, 2, 0x10, 1}) // the number of a field with the type of another
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var ours frame
		testkit.Bounded(t, 1<<20, func() { _ = decodeFrame(data, &ours) })
		_ = decodeFault(ours.body)
		more := false
		_ = eachEntry(ours.body, &more, func(*entry) {})
		// The generated code merges what stands twice; without what it does not know, and
		// written again, it is what a server sends.
		theirs := &realtimev1.ServerFrame{}
		if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, theirs) != nil {
			return
		}
		written, err := proto.MarshalOptions{Deterministic: true}.Marshal(theirs)
		require.NoError(t, err)
		var f frame
		require.NoError(t, decodeFrame(written, &f))
		requireSame(t, theirs, &f)
	})
}

func requireSame(t *testing.T, want *realtimev1.ServerFrame, got *frame) {
	t.Helper()
	require.Equal(t, want.GetId(), got.id)
	switch kind := want.GetFrame().(type) {
	case *realtimev1.ServerFrame_Welcome:
		require.Equal(t, kindWelcome, got.kind)
	case *realtimev1.ServerFrame_Resync:
		require.Equal(t, kindResync, got.kind)
	case *realtimev1.ServerFrame_Reply:
		if kind.Reply.GetError() != nil {
			require.Equal(t, kindError, got.kind)
			return
		}
		require.Equal(t, kindReply, got.kind)
		require.Equal(t, string(kind.Reply.GetResponse()), string(got.body))
	case *realtimev1.ServerFrame_Push:
		entry := kind.Push.GetEntry()
		if entry == nil {
			require.Equal(t, kindOther, got.kind)
			return
		}
		require.Equal(t, kindEntry, got.kind)
		require.Equal(t, entry.GetConversationId(), string(got.entry.conversation))
		require.Equal(t, entry.GetSeq(), got.entry.seq)
		require.Equal(t, entry.GetOrdinal(), got.entry.ordinal)
		require.Equal(t, entry.GetSenderId(), string(got.entry.sender))
		require.Equal(t, entry.GetClientMessageId(), string(got.entry.client))
		require.Equal(t, entry.GetMessage() != nil, got.entry.message)
		require.Equal(t, entry.GetMessage().GetText(), string(got.entry.text))
		require.Equal(t, entry.GetCreatedAt().GetSeconds()*1e9+int64(entry.GetCreatedAt().GetNanos()), got.entry.at)
	}
}

// FuzzUUID holds that an id is read in the one spelling in which we write it.
func FuzzUUID(f *testing.F) {
	f.Add(uuid.NewString())
	f.Add("24251e74x5d26x4a01xa6fbx583a3faf39cf")
	f.Add("24251E74-5D26-4A01-A6FB-583A3FAF39CF")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := parseUUID([]byte(text))
		if err != nil {
			return
		}
		var back uuidText
		formatUUID(&back, id)
		want, err := uuid.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want, uuid.UUID(id))
		require.Equal(t, want.String(), string(back[:]))
	})
}

// FuzzCounts holds that what a client process prints is read whole or refused,
// histograms included.
func FuzzCounts(f *testing.F) {
	counts := newCounts()
	counts.Ack.add(5_000_000)
	counts.Errors["x"] = 1
	good, err := json.Marshal(counts)
	require.NoError(f, err)
	f.Add(good)
	for _, text := range []string{`{}`, `null`, `{"ack":""}`, `{"ack":[[1,-1]]}`, `{"ack":[[5,9223372036854775807],[6,1]]}`, `{"ack":[[9223372036854775807,1]]}`, `{"ack":[[-1,1]]}`, `{"errors":null}`, `{"sent":1e400}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got Counts
		var err error
		testkit.Bounded(t, 64<<20, func() { err = json.Unmarshal(data, &got) })
		if err != nil {
			return
		}
		if got.Ack.Histogram != nil {
			require.GreaterOrEqual(t, got.Ack.TotalCount(), int64(0))
		}
	})
}

// FuzzStat holds that a line of the table of processes is read or left out.
func FuzzStat(f *testing.F) {
	f.Add("1 (a) b) S 7 1 1 0 -1 0 0 0 0 0 10 20 0 0 20 0 1 0 5 1000 300 18446744073709551615")
	f.Add(") ")
	f.Add("1 (x) S")
	f.Fuzz(func(t *testing.T, line string) {
		if entry, ok := parseStat(line); !ok {
			require.Zero(t, entry)
		}
	})
}
