package gateway

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// The subprotocols of the socket. A client that asks for none gets the first.
const (
	SubprotocolProto = "parley.v1.proto"
	SubprotocolJSON  = "parley.v1.json"
)

var (
	errBadFrame = errors.New("frame cannot be decoded")
	errNotUTF8  = errors.New("text is not UTF-8")
)

// format is a subprotocol: how frames stand in WebSocket messages. Both are
// stateless and shared by all sockets.
type format interface {
	// codec is Connect's name of the encoding of requests and responses.
	codec() string
	// opcode is the type of the messages, websocket.TextMessage or BinaryMessage.
	opcode() byte
	// decode reads a client's frame; Call.Request holds the request in codec. It
	// keeps nothing of data. Errors wrap errBadFrame or errNotUTF8.
	decode(data []byte) (*realtimev1.ClientFrame, error)
	encode(frame *realtimev1.ServerFrame) ([]byte, error)
	// message encodes a response that comes from the gateway itself, in codec.
	message(m proto.Message) ([]byte, error)
	// response encodes a reply around a response that is in codec.
	response(id uint32, response []byte) ([]byte, error)
	// pushed gives the bytes of a push that came off the bus.
	pushed(p *prepared) ([]byte, error)
}

type protoFormat struct{}

func (protoFormat) codec() string { return "proto" }
func (protoFormat) opcode() byte  { return websocket.BinaryMessage }

func (protoFormat) decode(data []byte) (*realtimev1.ClientFrame, error) {
	frame := &realtimev1.ClientFrame{}
	if err := proto.Unmarshal(data, frame); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadFrame, err)
	}
	return frame, nil
}

func (protoFormat) encode(frame *realtimev1.ServerFrame) ([]byte, error) {
	data, err := proto.Marshal(frame)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	return data, nil
}

func (protoFormat) message(m proto.Message) ([]byte, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode response: %w", err)
	}
	return data, nil
}

func (f protoFormat) response(id uint32, response []byte) ([]byte, error) {
	return f.encode(&realtimev1.ServerFrame{Id: id, Frame: &realtimev1.ServerFrame_Reply{
		Reply: &realtimev1.Reply{Result: &realtimev1.Reply_Response{Response: response}},
	}})
}

func (protoFormat) pushed(p *prepared) ([]byte, error) { return p.payload, nil }

type jsonFormat struct{}

func (jsonFormat) codec() string { return "json" }
func (jsonFormat) opcode() byte  { return websocket.TextMessage }

// jsonClientFrame is ClientFrame in proto3 JSON, with the request in place. As
// proto3 JSON demands, both spellings of a name are read.
type jsonClientFrame struct {
	ID           jsonNumber `json:"id"`
	Authenticate *struct {
		AccessToken  string     `json:"accessToken"`
		AccessToken2 string     `json:"access_token"`
		Device       jsonDevice `json:"device"`
	} `json:"authenticate"`
	Call *struct {
		Procedure  string          `json:"procedure"`
		Lane       string          `json:"lane"`
		Request    json.RawMessage `json:"request"`
		TimeoutMs  jsonNumber      `json:"timeoutMs"`
		TimeoutMs2 jsonNumber      `json:"timeout_ms"`
	} `json:"call"`
	Ping  *struct{}       `json:"ping"`
	Watch json.RawMessage `json:"watch"`
}

// jsonNumber is a uint32, which proto3 JSON reads from a string too.
type jsonNumber uint32

// UnmarshalJSON implements json.Unmarshaler.
func (n *jsonNumber) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	if data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return fmt.Errorf("number: %w", err)
		}
		data = []byte(text)
	}
	number, err := strconv.ParseUint(string(data), 10, 32)
	if err != nil {
		return fmt.Errorf("number: %w", err)
	}
	*n = jsonNumber(number)
	return nil
}

// jsonDevice is a DeviceKind by name or number; a name of a later release is
// unknown.
type jsonDevice realtimev1.DeviceKind

// UnmarshalJSON implements json.Unmarshaler.
func (d *jsonDevice) UnmarshalJSON(data []byte) error {
	var name string
	if json.Unmarshal(data, &name) == nil {
		*d = jsonDevice(realtimev1.DeviceKind_value[name])
		return nil
	}
	var number int32
	if err := json.Unmarshal(data, &number); err != nil {
		return fmt.Errorf("device: %w", err)
	}
	*d = jsonDevice(number)
	return nil
}

func (jsonFormat) decode(data []byte) (*realtimev1.ClientFrame, error) {
	if !utf8.Valid(data) {
		return nil, errNotUTF8
	}
	var in jsonClientFrame
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadFrame, err)
	}
	frame := &realtimev1.ClientFrame{Id: uint32(in.ID)}
	kinds := 0
	if a := in.Authenticate; a != nil {
		kinds++
		frame.Frame = &realtimev1.ClientFrame_Authenticate{Authenticate: &realtimev1.Authenticate{
			AccessToken: a.AccessToken + a.AccessToken2, Device: realtimev1.DeviceKind(a.Device),
		}}
	}
	if c := in.Call; c != nil {
		kinds++
		if len(c.Request) == 0 || string(c.Request) == "null" {
			c.Request = json.RawMessage("{}")
		}
		frame.Frame = &realtimev1.ClientFrame_Call{Call: &realtimev1.Call{
			Procedure: c.Procedure, Lane: c.Lane, Request: c.Request, TimeoutMs: uint32(max(c.TimeoutMs, c.TimeoutMs2)),
		}}
	}
	if in.Ping != nil {
		kinds++
		frame.Frame = &realtimev1.ClientFrame_Ping{Ping: &realtimev1.Ping{}}
	}
	if len(in.Watch) > 0 && string(in.Watch) != "null" {
		kinds++
		watch := &realtimev1.Watch{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(in.Watch, watch); err != nil {
			return nil, fmt.Errorf("%w: watch: %w", errBadFrame, err)
		}
		frame.Frame = &realtimev1.ClientFrame_Watch{Watch: watch}
	}
	if kinds > 1 {
		return nil, fmt.Errorf("%w: more than one kind in it", errBadFrame)
	}
	return frame, nil
}

func (jsonFormat) encode(frame *realtimev1.ServerFrame) ([]byte, error) {
	data, err := protojson.Marshal(frame)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	return data, nil
}

func (jsonFormat) message(m proto.Message) ([]byte, error) {
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode response: %w", err)
	}
	return data, nil
}

func (jsonFormat) response(id uint32, response []byte) ([]byte, error) {
	if len(response) == 0 {
		response = []byte("{}")
	}
	type reply struct {
		Response json.RawMessage `json:"response"`
	}
	data, err := json.Marshal(struct {
		ID    uint32 `json:"id"`
		Reply reply  `json:"reply"`
	}{id, reply{response}})
	if err != nil {
		return nil, fmt.Errorf("encode reply: %w", err)
	}
	return data, nil
}

func (jsonFormat) pushed(p *prepared) ([]byte, error) { return p.asJSON() }

// formatOf is the format of an agreed subprotocol.
func formatOf(subprotocol string) format {
	if subprotocol == SubprotocolJSON {
		return jsonFormat{}
	}
	return protoFormat{}
}

// finalFrame is the bit of a message's last frame; ours have one.
const finalFrame = 0x80

// appendMessage appends a message as one unmasked WebSocket frame (RFC 6455,
// section 5.2), which is how a server sends. We write frames ourselves so that
// everything that waits for a socket goes out in one system call and the same
// bytes serve all sockets.
func appendMessage(dst []byte, opcode byte, payload []byte) []byte {
	dst = append(dst, finalFrame|opcode)
	switch n := len(payload); {
	case n <= 125:
		dst = append(dst, byte(n))
	case n <= 0xffff:
		dst = append(dst, 126)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	default:
		dst = append(dst, 127)
		dst = binary.BigEndian.AppendUint64(dst, uint64(n))
	}
	return append(dst, payload...)
}
