package gateway

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"net/netip"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/testkit"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// frameCost bounds what decoding a frame may allocate: a few times its size, and
// what any call costs.
func frameCost(data []byte) uint64 { return 1<<20 + 128*uint64(len(data)) }

// seedFrames are frames that are right, nearly right and wrong, in both forms.
func seedFrames(f *testing.F) {
	f.Helper()
	for _, text := range []string{
		`{"id":1,"authenticate":{"accessToken":"t"}}`, `{"id":1,"authenticate":{"accessToken":"t","access_token":"u"}}`,
		`{"id":2,"call":{"procedure":"/a/b","lane":"c","request":{"x":[1]},"timeoutMs":5}}`,
		`{"id":2,"call":{"procedure":"/a/b","request":null,"timeout_ms":4294967295}}`,
		`{"id":1,"authenticate":{"accessToken":"t","device":"DEVICE_KIND_MOBILE"}}`, `{"id":1,"authenticate":{"accessToken":"t","device":1}}`,
		`{"id":4,"watch":{"userIds":["6f9619ff-8b86-4d01-b42d-00cf4fc964ff"],"replace":true}}`, `{"id":4,"watch":{"remove_user_ids":["x"]}}`,
		"\x08\x01\x12\x05\x0a\x01t\x10\x01", "\x08\x04\x2a\x05\x0a\x01x\x10\x01", "\x08\x04\x2a\x03\x1a\x01y",
		`{"id":3,"ping":{}}`, `{"id":3,"ping":{},"call":{}}`, `{"id":3,"ping":null}`,
		`{"id":-1}`, `{"id":"1"}`, `{"id":1.0,"ping":{}}`, `{"id":4294967296}`, `{"ID":1,"Ping":{}}`, `{"id":1,"id":2,"ping":{}}`,
		`{"id":1,"ping":{"x":"\ud800"}}`, `{`, `null`, `[]`, `{"id":1,"ping":{}} {}`,
		"\x08\x01\x12\x03\x0a\x01\x74", "\x08\x02\x1a\x0c\x0a\x04/a/b\x1a\x04\x0a\x02hi", "\x08\x03\x22\x00",
		"\x08\x01\x12\x03\x0a\x01\xff", "\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "\xff\xff", "",
	} {
		f.Add([]byte(text))
	}
	f.Add(bytes.Repeat([]byte("["), 20_000))
	f.Add(append([]byte(`{"id":1,"call":{"request":`), bytes.Repeat([]byte(`{"a":`), 5000)...))
	f.Add(bytes.Repeat([]byte{0x0b}, 20_000)) // groups in groups
}

// FuzzFrame holds that no bytes of a client break a decoder or cost more than
// their size allows, and that what one takes for a frame is one, keeps nothing
// of the buffer, and means the same when it is sent again.
func FuzzFrame(f *testing.F) {
	seedFrames(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, form := range []format{protoFormat{}, jsonFormat{}} {
			buffer := bytes.Clone(data)
			var frame *realtimev1.ClientFrame
			var err error
			testkit.Bounded(t, frameCost(data), func() { frame, err = form.decode(buffer) })
			if err != nil {
				if !utf8.Valid(data) && form.codec() == "json" {
					require.ErrorIs(t, err, errNotUTF8)
				} else {
					require.ErrorIs(t, err, errBadFrame)
				}
				continue
			}
			before, err := proto.Marshal(frame)
			require.NoError(t, err, "its texts are UTF-8")
			clear(buffer) // the buffer is used again: a frame must not hold on to it
			after, err := proto.Marshal(frame)
			require.NoError(t, err)
			require.Equal(t, before, after)
			again, err := form.decode(encodeAs(t, form, frame))
			require.NoError(t, err)
			requireSameFrame(t, frame, again)
		}
	})
}

// FuzzJSONFrame holds that we read a JSON frame as the generated code does, where
// both read it.
func FuzzJSONFrame(f *testing.F) {
	seedFrames(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, err := jsonFormat{}.decode(data)
		if err != nil {
			return
		}
		var whole map[string]json.RawMessage
		if json.Unmarshal(data, &whole) != nil {
			return // "null", which is an empty frame to us and nothing to the generated code
		}
		var call map[string]json.RawMessage
		if json.Unmarshal(whole["call"], &call) == nil && call != nil {
			delete(call, "request") // ours stands in place; theirs would be base64
			whole["call"], err = json.Marshal(call)
			require.NoError(t, err)
		}
		rest, err := json.Marshal(whole)
		require.NoError(t, err)
		theirs := &realtimev1.ClientFrame{}
		if protojson.Unmarshal(rest, theirs) != nil {
			return
		}
		if ours.GetCall() != nil {
			ours.GetCall().Request = nil
		}
		require.Empty(t, ours.ProtoReflect().GetUnknown())
		require.True(t, proto.Equal(theirs, ours), "%v is not %v", ours, theirs)
	})
}

// encodeAs is what a client sends for a frame. A request that is no JSON becomes
// an empty one, as on decoding.
func encodeAs(t *testing.T, form format, frame *realtimev1.ClientFrame) []byte {
	t.Helper()
	if form.codec() == "proto" {
		data, err := proto.Marshal(frame)
		require.NoError(t, err)
		return data
	}
	data, err := protojson.Marshal(frame)
	require.NoError(t, err)
	call := frame.GetCall()
	if call == nil {
		return data
	}
	var whole map[string]any
	require.NoError(t, json.Unmarshal(data, &whole))
	whole["call"].(map[string]any)["request"] = json.RawMessage(call.GetRequest())
	data, err = json.Marshal(whole)
	require.NoError(t, err)
	return data
}

// requireSameFrame compares frames; JSON requests by their meaning.
func requireSameFrame(t *testing.T, want, got *realtimev1.ClientFrame) {
	t.Helper()
	want, got = proto.CloneOf(want), proto.CloneOf(got)
	if call := want.GetCall(); call != nil && json.Valid(call.GetRequest()) {
		require.NotNil(t, got.GetCall())
		var compact, other bytes.Buffer
		require.NoError(t, json.Compact(&compact, call.GetRequest()))
		require.NoError(t, json.Compact(&other, got.GetCall().GetRequest()))
		require.JSONEq(t, compact.String(), other.String())
		call.Request, got.GetCall().Request = nil, nil
	}
	require.True(t, proto.Equal(want, got), "%v is not %v", got, want)
}

// FuzzReply holds that whatever a service answers becomes a frame that a client
// can read, or an error, and that the response in it is the one that was given.
func FuzzReply(f *testing.F) {
	for _, text := range []string{`{}`, `{"seq":"7"}`, ``, `null`, `{`, "\xff", `{"a":"\u2028<&>"}`, " {\n}\t", `{} {}`} {
		f.Add(uint32(1), []byte(text))
	}
	f.Add(uint32(math.MaxUint32), []byte("\x08\x07"))
	f.Fuzz(func(t *testing.T, id uint32, response []byte) {
		for _, form := range []format{protoFormat{}, jsonFormat{}} {
			data, err := form.response(id, response)
			if form.codec() == "proto" {
				require.NoError(t, err)
				frame := &realtimev1.ServerFrame{}
				require.NoError(t, proto.Unmarshal(data, frame))
				require.Equal(t, id, frame.GetId())
				require.Equal(t, string(response), string(frame.GetReply().GetResponse()))
				continue
			}
			require.Equal(t, len(response) == 0 || json.Valid(response), err == nil)
			if err != nil {
				continue
			}
			var frame struct {
				ID    uint32 `json:"id"`
				Reply struct {
					Response json.RawMessage `json:"response"`
				} `json:"reply"`
			}
			require.NoError(t, json.Unmarshal(data, &frame))
			require.Equal(t, id, frame.ID)
			if len(response) > 0 {
				require.JSONEq(t, string(response), string(frame.Reply.Response))
			}
			require.True(t, utf8.Valid(data) || !utf8.Valid(response), "a text message is UTF-8")
		}
	})
}

// FuzzPushed holds that bytes from the bus go to a JSON socket as JSON or not at
// all, and to a binary one as they are.
func FuzzPushed(f *testing.F) {
	push, err := proto.Marshal(&realtimev1.ServerFrame{Frame: &realtimev1.ServerFrame_Resync{Resync: &realtimev1.Resync{}}})
	require.NoError(f, err)
	for _, data := range [][]byte{push, {}, {0x22, 0}, {0x22, 2, 0x0a, 0}, {0xff}, bytes.Repeat([]byte{0x22, 0x80}, 100)} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &prepared{payload: data}
		raw, err := protoFormat{}.pushed(p)
		require.NoError(t, err)
		require.Equal(t, data, raw)
		var text []byte
		testkit.Bounded(t, frameCost(data), func() { text, err = jsonFormat{}.pushed(p) })
		if err == nil {
			require.True(t, json.Valid(text))
			require.True(t, utf8.Valid(text))
		}
	})
}

// FuzzMessage holds that the WebSocket frames that we write ourselves are read
// by the rules of RFC 6455 as what was written, one after the other.
func FuzzMessage(f *testing.F) {
	for _, size := range []int{0, 125, 126, 65535, 65536} {
		f.Add(bytes.Repeat([]byte("x"), size), []byte("second"))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		stream := appendMessage(appendMessage(nil, 1, first), 2, second)
		for i, want := range [][]byte{first, second} {
			opcode, payload, rest, ok := parseMessage(stream)
			require.True(t, ok)
			require.Equal(t, byte(i+1), opcode)
			require.Equal(t, string(want), string(payload))
			stream = rest
		}
		require.Empty(t, stream)
	})
}

// parseMessage reads one unmasked frame as section 5.2 tells, minimal length included.
func parseMessage(stream []byte) (opcode byte, payload, rest []byte, ok bool) {
	if len(stream) < 2 || stream[0]&0xf0 != finalFrame || stream[1]&0x80 != 0 {
		return 0, nil, nil, false
	}
	size, header := uint64(stream[1]), 2
	if extended := map[byte]int{126: 2, 127: 8}[stream[1]]; extended > 0 {
		size = 0
		for _, b := range stream[2 : 2+extended] {
			size = size<<8 | uint64(b)
		}
		header += extended
		if size <= 125 || (extended == 8 && size <= math.MaxUint16) {
			return 0, nil, nil, false
		}
	}
	end := header + int(size)
	return stream[0] & 0x0f, stream[header:end], stream[end:], end <= len(stream)
}

// FuzzClosePayload holds that a close frame is one that every client takes: it
// fits into a control frame and its reason is UTF-8; and that what the client is
// told about coming back is never cut.
func FuzzClosePayload(f *testing.F) {
	f.Add(closeTryLater, "", int64(0))
	f.Add(closeTooMany, "ä long reason with a letter of two bytes at its very end, so that a cut in the wrong place would halve it, which is what aaaäää", int64(5))
	f.Add(closeBadFrame, "\xff", int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, code int, reason string, wait int64) {
		payload := closePayload(code, reason)
		require.LessOrEqual(t, len(payload), 125, "the largest control frame")
		require.Equal(t, uint16(code), uint16(payload[0])<<8|uint16(payload[1]))
		require.True(t, utf8.Valid(payload[2:]))
		if utf8.ValidString(reason) && len(reason) <= maxCloseReason {
			require.Equal(t, reason, string(payload[2:]))
		}
		advice := closePayload(code, comeBack(time.Duration(wait)))[2:]
		var told struct {
			ReconnectMs *int64 `json:"reconnect_ms"`
			Resume      bool   `json:"resume"`
		}
		require.NoError(t, json.Unmarshal(advice, &told))
		require.Equal(t, time.Duration(wait).Milliseconds(), *told.ReconnectMs)
		require.True(t, told.Resume)
	})
}

// FuzzAddress holds that a client can choose only the part of its address that
// no trusted proxy wrote.
func FuzzAddress(f *testing.F) {
	for _, header := range []string{"", "203.0.113.9", "10.0.0.1, 203.0.113.9", "::1,10.1.2.3", "x, 10.0.0.2", "fe80::1%eth0", "::ffff:10.0.0.1", ",,,"} {
		f.Add("192.0.2.1:5", header)
		f.Add("10.0.0.7:5", header)
	}
	f.Add("pipe", "203.0.113.9")
	f.Fuzz(func(t *testing.T, peer, header string) {
		a, err := newAdmission(&Config{TrustedProxies: []string{"10.0.0.0/8", "::1"}})
		require.NoError(t, err)
		request := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {header}}}
		var got netip.Addr
		testkit.Bounded(t, 1<<20+64*uint64(len(header)), func() { got = a.addressOf(request) })
		direct, err := netip.ParseAddrPort(peer)
		if err != nil {
			require.False(t, got.IsValid())
			return
		}
		require.True(t, got.IsValid())
		if !within(direct.Addr().Unmap(), a.trusted) {
			require.Equal(t, direct.Addr().Unmap(), got, "an untrusted peer speaks for itself")
		}
		require.NotNil(t, a.source(got))
		require.False(t, got.Is4In6())
	})
}
