package cache

import "google.golang.org/protobuf/proto"

// message is *M, and a protobuf message.
type message[M any] interface {
	*M
	proto.Message
}

// EncodeProto is Options.Encode for protobuf messages.
func EncodeProto[P proto.Message](m P) ([]byte, error) { return proto.Marshal(m) }

// DecodeProto is Options.Decode for protobuf messages.
func DecodeProto[M any, P message[M]](raw []byte) (P, error) {
	m := P(new(M))
	if err := proto.Unmarshal(raw, m); err != nil {
		return nil, err
	}
	return m, nil
}
