package auth

import (
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// The types of the events that auth emits; username.go has one more, erase.go what it listens to.
const (
	typeAccountRegistered = "account.registered"
	typeSessionRevoked    = "session.revoked"
	typeSuspended         = "account.suspended"
	typeUnsuspended       = "account.unsuspended"
)

// accountRegistered tells of a new account: the first version of its key.
func accountRegistered(a account) *eventv1.Event {
	return event.New(typeAccountRegistered, a.id.String(), firstVersion, &authv1.AccountRegistered{
		AccountId:    a.id.String(),
		Username:     a.username,
		DisplayName:  a.displayName,
		RegisteredAt: timestamppb.New(a.createdAt),
	})
}

// sessionRevoked tells of the end of a session. A session is revoked once, and nothing else is ever told of
// it, so this is the first version of its key.
func sessionRevoked(sessionID, accountID uuid.UUID, at time.Time) *eventv1.Event {
	return event.New(typeSessionRevoked, sessionID.String(), firstVersion, &authv1.SessionRevoked{
		SessionId: sessionID.String(),
		AccountId: accountID.String(),
		RevokedAt: timestamppb.New(at),
	})
}

// accountSuspended tells of a suspension that begins, or that has another end.
func accountSuspended(accountID uuid.UUID, version int64, at time.Time, until *time.Time) *eventv1.Event {
	return event.New(typeSuspended, accountID.String(), version, &authv1.AccountSuspended{
		AccountId: accountID.String(), SuspendedAt: timestamppb.New(at), Until: timeToProto(until),
	})
}

// accountUnsuspended tells that a suspension is over.
func accountUnsuspended(accountID uuid.UUID, version int64, at time.Time) *eventv1.Event {
	return event.New(typeUnsuspended, accountID.String(), version, &authv1.AccountUnsuspended{
		AccountId: accountID.String(), UnsuspendedAt: timestamppb.New(at),
	})
}

// firstVersion is the key_version of a key's first event.
const firstVersion = 1

// emitFunc puts events into the outbox of the transaction at hand.
type emitFunc = func(events ...*eventv1.Event) error
