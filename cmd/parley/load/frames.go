package load

import (
	"encoding/hex"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Frames are read and written by hand, field by field, with the numbers of
// realtime.proto and messaging.proto: the client shares the machine with what
// it measures, and decoding a push into messages costs it a dozen allocations.
// Whatever is not on the path of a message goes by the generated code.

const (
	procedureSend   = "/parley.messaging.v1.MessagingService/SendMessage"
	procedureStart  = "/parley.messaging.v1.MessagingService/CreateDirectConversation"
	procedureEvents = "/parley.messaging.v1.MessagingService/ListEvents"
	procedureSync   = "/parley.messaging.v1.MessagingService/Sync"
)

// kind is what a server's frame carries.
type kind uint8

const (
	kindOther kind = iota // unknown to this client: ignored, as the protocol asks
	kindWelcome
	kindReply
	kindError
	kindEntry
	kindResync
)

// frame is a ServerFrame. Its slices lie in the buffer it was read from.
type frame struct {
	id   uint32
	kind kind
	// body is the Welcome, the encoded response or the realtime Error.
	body  []byte
	entry entry
}

// entry is a messaging Entry. Its slices lie in the buffer it was read from.
type entry struct {
	conversation, sender, client, text []byte
	seq, ordinal                       int64
	// at is created_at in nanoseconds since 1970.
	at      int64
	message bool
}

var errFrame = errors.New("a frame cannot be decoded")

// each calls visit with every field of a message: number is its own for varints, bytes for
// length-delimited ones. Other types are skipped.
func each(b []byte, visit func(field protowire.Number, number uint64, bytes []byte) error) error {
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errFrame
		}
		b = b[n:]
		var number uint64
		var bytes []byte
		switch typ {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, typ, b)
		}
		if n < 0 {
			return errFrame
		}
		b = b[n:]
		if err := visit(field, number, bytes); err != nil {
			return err
		}
	}
	return nil
}

// decodeFrame reads a ServerFrame.
func decodeFrame(b []byte, f *frame) error {
	*f = frame{}
	return each(b, func(field protowire.Number, number uint64, bytes []byte) error {
		switch field {
		case 1:
			f.id = uint32(number)
		case 2:
			f.kind, f.body = kindWelcome, bytes
		case 3:
			return decodeReply(bytes, f)
		case 4:
			return decodePush(bytes, f)
		case 5:
			f.kind = kindResync
		}
		return nil
	})
}

func decodeReply(b []byte, f *frame) error {
	f.kind = kindReply // a response without fields has no bytes
	return each(b, func(field protowire.Number, _ uint64, bytes []byte) error {
		switch field {
		case 1:
			f.body = bytes
		case 2:
			f.kind, f.body = kindError, bytes
		}
		return nil
	})
}

func decodePush(b []byte, f *frame) error {
	return each(b, func(field protowire.Number, _ uint64, bytes []byte) error {
		if field != 1 {
			return nil // receipts and new conversations say nothing about messages
		}
		f.kind = kindEntry
		return decodeEntry(bytes, &f.entry)
	})
}

func decodeEntry(b []byte, e *entry) error {
	return each(b, func(field protowire.Number, number uint64, bytes []byte) error {
		switch field {
		case 1:
			e.conversation = bytes
		case 2:
			e.seq = int64(number)
		case 3:
			e.ordinal = int64(number)
		case 4:
			e.sender = bytes
		case 5:
			return each(bytes, func(field protowire.Number, number uint64, _ []byte) error {
				switch field {
				case 1:
					e.at += int64(number) * 1e9
				case 2:
					e.at += int64(number)
				}
				return nil
			})
		case 6:
			e.client = bytes
		case 10:
			e.message = true
			return each(bytes, func(field protowire.Number, _ uint64, bytes []byte) error {
				if field == 1 {
					e.text = bytes
				}
				return nil
			})
		}
		return nil
	})
}

// decodeSeq reads the seq from a SendMessageResponse.
func decodeSeq(b []byte) (seq int64, err error) {
	err = each(b, func(field protowire.Number, number uint64, _ []byte) error {
		if field == 1 {
			seq = int64(number)
		}
		return nil
	})
	return seq, err
}

// writer builds ClientFrames in buffers that it keeps. Not for concurrent use.
type writer struct{ request, call, frame []byte }

// callFrame encodes ClientFrame{id, call{procedure, lane, request}}.
func (w *writer) callFrame(id uint32, procedure, lane string, request []byte) []byte {
	c := w.call[:0]
	c = protowire.AppendTag(c, 1, protowire.BytesType)
	c = protowire.AppendString(c, procedure)
	if lane != "" {
		c = protowire.AppendTag(c, 2, protowire.BytesType)
		c = protowire.AppendString(c, lane)
	}
	c = protowire.AppendTag(c, 3, protowire.BytesType)
	c = protowire.AppendBytes(c, request)
	w.call = c
	return w.wrap(id, 3, c)
}

// send encodes the call of SendMessage; the conversation is its own lane.
func (w *writer) send(id uint32, conversation string, client, text []byte) []byte {
	r := w.request[:0]
	r = protowire.AppendTag(r, 1, protowire.BytesType)
	r = protowire.AppendString(r, conversation)
	r = protowire.AppendTag(r, 2, protowire.BytesType)
	r = protowire.AppendBytes(r, client)
	r = protowire.AppendTag(r, 3, protowire.BytesType)
	r = protowire.AppendBytes(r, text)
	w.request = r
	return w.callFrame(id, procedureSend, conversation, r)
}

// authenticate encodes ClientFrame{id, authenticate{token}}.
func (w *writer) authenticate(id uint32, token string) []byte {
	a := protowire.AppendTag(w.call[:0], 1, protowire.BytesType)
	a = protowire.AppendString(a, token)
	w.call = a
	return w.wrap(id, 2, a)
}

// watch encodes ClientFrame{id, watch{user_ids, replace}}.
func (w *writer) watch(id uint32, people []string) []byte {
	c := w.call[:0]
	for _, person := range people {
		c = protowire.AppendTag(c, 1, protowire.BytesType)
		c = protowire.AppendString(c, person)
	}
	c = protowire.AppendTag(c, 2, protowire.VarintType)
	c = protowire.AppendVarint(c, 1)
	w.call = c
	return w.wrap(id, 5, c)
}

func (w *writer) wrap(id uint32, field protowire.Number, inner []byte) []byte {
	f := w.frame[:0]
	f = protowire.AppendTag(f, 1, protowire.VarintType)
	f = protowire.AppendVarint(f, uint64(id))
	f = protowire.AppendTag(f, field, protowire.BytesType)
	f = protowire.AppendBytes(f, inner)
	w.frame = f
	return f
}

// uuidText is the text form of a UUID.
type uuidText [36]byte

func formatUUID(to *uuidText, id [16]byte) {
	hex.Encode(to[0:8], id[0:4])
	to[8], to[13], to[18], to[23] = '-', '-', '-', '-'
	hex.Encode(to[9:13], id[4:6])
	hex.Encode(to[14:18], id[6:8])
	hex.Encode(to[19:23], id[8:10])
	hex.Encode(to[24:36], id[10:16])
}

func parseUUID(text []byte) (id [16]byte, err error) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return id, fmt.Errorf("%d bytes are no UUID", len(text))
	}
	var digits [32]byte
	n := copy(digits[:], text[0:8])
	n += copy(digits[n:], text[9:13])
	n += copy(digits[n:], text[14:18])
	n += copy(digits[n:], text[19:23])
	copy(digits[n:], text[24:36])
	_, err = hex.Decode(id[:], digits[:])
	return id, err
}

// eachEntry reads the entries and has_more of a ListEventsResponse.
func eachEntry(b []byte, more *bool, visit func(e *entry)) error {
	return each(b, func(field protowire.Number, number uint64, bytes []byte) error {
		switch field {
		case 1:
			var e entry
			if err := decodeEntry(bytes, &e); err != nil {
				return err
			}
			visit(&e)
		case 3:
			*more = number != 0
		}
		return nil
	})
}
