package event

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	// headerEvents says that a message holds an EventBatch, and of how many events;
	// without it, it holds one Event.
	headerEvents = "Parley-Events"
	// batchEvents and batchBytes bound what shares a message. JetStream's price is by
	// the message, and at thirty-two there is little of it left; a listener works on
	// few of so many before it can acknowledge them all.
	batchEvents = 32
	batchBytes  = 128 << 10
)

// Messages are the NATS messages of events that are complete, in their order. Events
// of one type that follow each other share a message, up to a bound: those of the
// same list share the same ones every time. Its Nats-Msg-Id is the id of the event, or
// made of that of the first. The outbox publishes them.
func Messages(domain string, events []*eventv1.Event) ([]*nats.Msg, error) {
	var messages []*nats.Msg
	for len(events) > 0 {
		n, bytes := 1, proto.Size(events[0])
		for n < min(len(events), batchEvents) && events[n].GetType() == events[0].GetType() {
			if bytes += proto.Size(events[n]); bytes > batchBytes {
				break
			}
			n++
		}
		msg, err := message(domain, events[:n])
		if err != nil {
			return nil, err
		}
		messages = append(messages, msg)
		events = events[n:]
	}
	return messages, nil
}

// message is that of events of one type.
func message(domain string, events []*eventv1.Event) (*nats.Msg, error) {
	first := events[0]
	msg := nats.NewMsg(Subject(domain, first.GetType()))
	var content proto.Message = first
	id := first.GetId()
	if len(events) > 1 {
		content = &eventv1.EventBatch{Events: events}
		count := strconv.Itoa(len(events))
		id += "/" + count
		msg.Header.Set(headerEvents, count)
	}
	data, err := proto.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("serialize event %s: %w", first.GetType(), err)
	}
	msg.Header.Set(jetstream.MsgIDHeader, id)
	msg.Data = data
	return msg, nil
}

// Read gives the events of a message of a stream; at least one, or an error.
func Read(header nats.Header, data []byte) ([]*eventv1.Event, error) {
	if header.Get(headerEvents) == "" {
		ev := &eventv1.Event{}
		if err := proto.Unmarshal(data, ev); err != nil {
			return nil, fmt.Errorf("parse event: %w", err)
		}
		return []*eventv1.Event{ev}, nil
	}
	batch := &eventv1.EventBatch{}
	if err := proto.Unmarshal(data, batch); err != nil {
		return nil, fmt.Errorf("parse events: %w", err)
	}
	if len(batch.GetEvents()) == 0 {
		return nil, errors.New("parse events: there is none")
	}
	return batch.GetEvents(), nil
}
