package gateway

import (
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
)

// Presence and typing are ephemera: of two about the same, only the later one
// counts, and a socket that is slow does without them before it does without
// anything else.

// softKey says what an ephemeral push is about: a person, or a person who writes in
// a conversation.
type softKey [16]byte

// The numbers of fields on the way to a Typing: ServerFrame.push, Push.typing.
const (
	fieldPush   = 4
	fieldTyping = 5
)

// classify says what kind of push came off the bus. It reads two tags of it; only
// what is typing is decoded.
func classify(payload []byte) (kind, *softKey) {
	push := field(payload, fieldPush)
	if push == nil {
		return kindPush, nil
	}
	raw := field(push, fieldTyping)
	if raw == nil {
		return kindPush, nil
	}
	typing := &messagingv1.Typing{}
	if err := proto.Unmarshal(raw, typing); err != nil {
		return kindPush, nil
	}
	conversation, err := uuid.Parse(typing.GetConversationId())
	if err != nil {
		return kindPush, nil
	}
	user, err := uuid.Parse(typing.GetUserId())
	if err != nil {
		return kindPush, nil
	}
	var key softKey
	for i := range key {
		key[i] = conversation[i] ^ user[i]
	}
	return kindTyping, &key
}

// field gives the content of a message that is nothing but this field, which is
// what a oneof is; nil otherwise.
func field(data []byte, number protowire.Number) []byte {
	got, typ, n := protowire.ConsumeTag(data)
	if n < 0 || got != number || typ != protowire.BytesType {
		return nil
	}
	content, m := protowire.ConsumeBytes(data[n:])
	if m < 0 || n+m != len(data) {
		return nil
	}
	return content
}

// supersedeLocked puts an ephemeral push into the place of an earlier one about the
// same that still waits. It returns false if there is none.
func (c *connection) supersedeLocked(item outgoing) bool {
	for i := range c.queue {
		old := &c.queue[i]
		if old.soft == nil || old.kind != item.kind || *old.soft != *item.soft {
			continue
		}
		c.queued += len(item.payload) - len(old.payload)
		*old = item
		c.gw.metrics.leftOut(c.gw, item.kind, 1, true)
		return true
	}
	return false
}

// dropSoftLocked takes all ephemera out of the queue, to make room for what has to
// arrive.
func (c *connection) dropSoftLocked() {
	kept := c.queue[:0]
	var presence, typing int
	for _, item := range c.queue {
		if item.soft == nil {
			kept = append(kept, item)
			continue
		}
		c.queued -= len(item.payload) + itemOverhead
		if item.kind == kindPresence {
			presence++
		} else {
			typing++
		}
	}
	clear(c.queue[len(kept):])
	c.queue = kept
	c.missedLocked(kindPresence, presence)
	c.missedLocked(kindTyping, typing)
}

// missedLocked is told what the socket will not get. Typing passes by itself.
// Presence does not: the client has to ask anew whom it watches.
func (c *connection) missedLocked(k kind, count int) {
	if count == 0 {
		return
	}
	c.gw.metrics.leftOut(c.gw, k, count, false)
	if k == kindPresence {
		c.resyncIn(c.gw.spread(c.gw.cfg.Socket.ResyncWindow))
	}
}

func (m *metrics) leftOut(g *Gateway, k kind, count int, superseded bool) {
	m.ephemera.Add(g.base, int64(count), metric.WithAttributes(
		attribute.String("kind", k.String()), attribute.Bool("superseded", superseded)))
}
