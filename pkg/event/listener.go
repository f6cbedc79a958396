package event

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// Mode is how a listener makes an event that comes twice have one effect.
type Mode int

const (
	// ByVersion: the listener's own upsert keeps the highest key_version. An
	// older or equal version changes nothing.
	ByVersion Mode = iota + 1
	// Once: a row in the inbox, in the same transaction as the effect. For what
	// has no version: counters, notifications, mail.
	Once
)

// Listener takes one type of event of one domain.
type Listener struct {
	// Name is unique within the service and never changes: it names the durable
	// consumer. Empty means Type.
	Name string
	// Source is the publishing domain.
	Source string
	// Type of the events, for example "user.blocked".
	Type string
	Mode Mode
	// Handle does the effect through tx, which commits if it returns nil. It is
	// called again after an error, up to the limit; Later marks an error that
	// does not count; ErrUnknownPayload leaves the event for a newer replica. An
	// effect outside of the database must bear being done again.
	Handle func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) error
}

// Named returns the listener with another name, for a service that listens twice
// to one type.
func (l Listener) Named(name string) Listener {
	l.Name = name
	return l
}

// On makes a listener of type typ of domain source whose payload is a T. Its
// name is typ. A payload of another type is left for a newer replica.
func On[T proto.Message](source, typ string, mode Mode,
	fn func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, payload T) error,
) Listener {
	return Listener{
		Name: typ, Source: source, Type: typ, Mode: mode,
		Handle: func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) error {
			var zero T
			message, ok := zero.ProtoReflect().Type().New().Interface().(T)
			if !ok {
				return fmt.Errorf("payload type %T makes another type", zero)
			}
			if !ev.GetPayload().MessageIs(message) {
				return fmt.Errorf("%w: %q", ErrUnknownPayload, ev.GetPayload().GetTypeUrl())
			}
			if err := ev.GetPayload().UnmarshalTo(message); err != nil {
				return fmt.Errorf("parse payload of %s: %w", typ, err)
			}
			return fn(ctx, tx, ev, message)
		},
	}
}

// ErrUnknownPayload says that this program does not know the payload: it is
// older than the publisher. The event waits for a newer replica.
var ErrUnknownPayload = errors.New("unknown payload")

// laterError marks errors that pass by themselves.
type laterError struct{ err error }

func (e laterError) Error() string { return e.err.Error() }
func (e laterError) Unwrap() error { return e.err }

// Later marks an error of Handle as one that passes by itself (a callee is
// away): the event is tried again without counting, so an outage parks nothing.
func Later(err error) error {
	if err == nil {
		return nil
	}
	return laterError{err: err}
}

func (l Listener) check() error {
	switch {
	case l.Name == "" || l.Source == "" || l.Type == "":
		return fmt.Errorf("listener %q of %q lacks a name, source or type", l.Name, l.Type)
	case strings.ContainsAny(l.Name, " *>/\\"):
		return fmt.Errorf("listener name %q has a character that NATS forbids", l.Name)
	case l.Mode != ByVersion && l.Mode != Once:
		return fmt.Errorf("listener %s has no mode", l.Name)
	case l.Handle == nil:
		return fmt.Errorf("listener %s has no Handle", l.Name)
	}
	return nil
}

// durable is the name of the consumer: "<service>--<listener>". Names of
// consumers have no dots.
func durable(service, listener string) string {
	return service + "--" + strings.ReplaceAll(listener, ".", "-")
}
