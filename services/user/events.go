package user

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/event"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
)

// typeUserCreated is the type of the one event that user emits.
const typeUserCreated = "user.created"

// firstVersion is the key_version of a profile's first event.
const firstVersion = 1

// userCreated tells of a new profile: the first version of its key.
func userCreated(p profile) *eventv1.Event {
	return event.New(typeUserCreated, p.id.String(), firstVersion, &userv1.UserCreated{
		UserId:      p.id.String(),
		Username:    p.username,
		DisplayName: p.displayName,
	})
}

// emitFunc puts events into the outbox of the transaction at hand.
type emitFunc = func(events ...*eventv1.Event) error

// listeners are the subscriptions of the service.
func (s *Service) listeners() []event.Listener {
	return []event.Listener{
		event.On("auth", "account.registered", event.ByVersion, s.onAccountRegistered),
	}
}

// onAccountRegistered makes the profile, unless somebody asked for the person before the event came.
func (s *Service) onAccountRegistered(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, registered *authv1.AccountRegistered) error {
	id, err := uuid.Parse(registered.GetAccountId())
	if err != nil {
		return fmt.Errorf("account id: %w", err)
	}
	emit := func(events ...*eventv1.Event) error { return s.outbox.Append(ctx, tx, events...) }
	return create(ctx, tx, emit, profile{
		id: id, username: registered.GetUsername(), displayName: registered.GetDisplayName(),
		accountVersion: ev.GetKeyVersion(), createdAt: registered.GetRegisteredAt().AsTime(),
	})
}
