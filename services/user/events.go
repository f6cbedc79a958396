package user

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/erasure"
	"github.com/parleychat/parley/pkg/event"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	erasurev1 "github.com/parleychat/parley/proto/gen/parley/erasure/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

// The types of the events that user emits.
const (
	typeUserCreated             = "user.created"
	typeUserUpdated             = "user.updated"
	typeUserDeleted             = "user.deleted"
	typeDeletionRequested       = "user.deletion_requested"
	typeDeletionCancelled       = "user.deletion_cancelled"
	typeDataExported            = "user.data_exported"
	typeErasureViewed           = "user.erasure_viewed"
	typeErasuresRepeated        = "user.erasures_repeated"
	typePresenceSettingsChanged = "user.presence_settings_changed"
)

// firstVersion is the key_version of a key's first event.
const firstVersion = 1

// userCreated tells of a new profile: the first version of its key.
func userCreated(p profile) *eventv1.Event {
	return event.New(typeUserCreated, p.id.String(), firstVersion, &userv1.UserCreated{
		UserId:      p.id.String(),
		Username:    p.username,
		DisplayName: p.displayName,
	})
}

// userUpdated tells what a profile is now.
func userUpdated(id uuid.UUID, d details) *eventv1.Event {
	return event.New(typeUserUpdated, id.String(), d.version, &userv1.UserUpdated{
		UserId: id.String(), Username: d.username, DisplayName: d.displayName,
	})
}

// userDeleted has everybody forget a person. It is the last version of its key.
func userDeleted(id uuid.UUID, version int64, at time.Time) *eventv1.Event {
	return event.New(typeUserDeleted, id.String(), version, &userv1.UserDeleted{
		UserId: id.String(), DeletedAt: timestamppb.New(at),
	})
}

// deletionRequested and deletionCancelled are the two versions of a request.
func deletionRequested(request, id uuid.UUID, at, due time.Time) *eventv1.Event {
	return event.New(typeDeletionRequested, request.String(), firstVersion, &userv1.UserDeletionRequested{
		UserId: id.String(), RequestedAt: timestamppb.New(at), DueAt: timestamppb.New(due),
	})
}

func deletionCancelled(request, id uuid.UUID, at time.Time) *eventv1.Event {
	return event.New(typeDeletionCancelled, request.String(), firstVersion+1, &userv1.UserDeletionCancelled{
		UserId: id.String(), CancelledAt: timestamppb.New(at),
	})
}

// dataExported tells of an export, for the record that auth keeps.
func dataExported(run, id uuid.UUID, at time.Time) *eventv1.Event {
	return event.New(typeDataExported, run.String(), firstVersion, &userv1.UserDataExported{
		UserId: id.String(), ExportedAt: timestamppb.New(at),
	})
}

// erasureViewed and erasuresRepeated tell of what admins did, for the record.
func erasureViewed(view, person, admin uuid.UUID, at time.Time) *eventv1.Event {
	return event.New(typeErasureViewed, view.String(), firstVersion, &userv1.UserErasureViewed{
		UserId: person.String(), ViewedBy: admin.String(), ViewedAt: timestamppb.New(at),
	})
}

func erasuresRepeated(id, admin uuid.UUID, since, at time.Time) *eventv1.Event {
	return event.New(typeErasuresRepeated, id.String(), firstVersion, &userv1.UserErasuresRepeated{
		RepeatedBy: admin.String(), DeletedSince: timestamppb.New(since), RepeatedAt: timestamppb.New(at),
	})
}

// presenceSettingsChanged tells how a person wants to be seen from now on.
func presenceSettingsChanged(s sighting) *eventv1.Event {
	return event.New(typePresenceSettingsChanged, s.user.String(), s.version, &userv1.UserPresenceSettingsChanged{
		UserId: s.user.String(), Invisible: s.invisible,
	})
}

// emitFunc puts events into the outbox of the transaction at hand.
type emitFunc = func(events ...*eventv1.Event) error

// listeners are the subscriptions of the service, the reports of the other services apart.
func (s *Service) listeners() []event.Listener {
	return []event.Listener{
		event.On("auth", "account.registered", event.ByVersion, s.onAccountRegistered),
		event.On("auth", "account.username_changed", event.ByVersion, s.onUsernameChanged),
		event.On("auth", "account.suspended", event.ByVersion, s.onAccountSuspended),
		event.On("auth", "account.unsuspended", event.ByVersion, s.onAccountUnsuspended),
		erasure.Listener("user", s.outbox, s.forget),
	}
}

// reports are the subscriptions to what the services of the deployment say when they have forgotten somebody.
func (s *Service) reports() []event.Listener {
	listeners := make([]event.Listener, 0, len(s.services))
	for _, service := range s.services {
		listeners = append(listeners, event.On(service, erasure.Reported(service), event.ByVersion,
			func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, forgotten *erasurev1.PersonForgotten) error {
				return s.onPersonForgotten(ctx, tx, service, ev, forgotten)
			}))
	}
	return listeners
}

// appendTo emits into the transaction of a listener.
func (s *Service) appendTo(ctx context.Context, tx pgx.Tx) emitFunc {
	return func(events ...*eventv1.Event) error { return s.outbox.Append(ctx, tx, events...) }
}

// onAccountRegistered makes the profile, unless somebody asked for the person before the event came.
func (s *Service) onAccountRegistered(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, registered *authv1.AccountRegistered) error {
	id, err := uuid.Parse(registered.GetAccountId())
	if err != nil {
		return fmt.Errorf("account id: %w", err)
	}
	_, err = create(ctx, tx, s.appendTo(ctx, tx), profile{
		id: id, username: registered.GetUsername(), displayName: registered.GetDisplayName(),
		accountVersion: ev.GetKeyVersion(), createdAt: registered.GetRegisteredAt().AsTime(),
	})
	return err
}

// onUsernameChanged gives the profile its new name; if the event overtook account.registered it makes the profile.
func (s *Service) onUsernameChanged(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, changed *authv1.AccountUsernameChanged) error {
	id, err := uuid.Parse(changed.GetAccountId())
	if err != nil {
		return fmt.Errorf("account id: %w", err)
	}
	emit := s.appendTo(ctx, tx)
	created, err := create(ctx, tx, emit, profile{
		id: id, username: changed.GetUsername(), displayName: changed.GetDisplayName(),
		accountVersion: ev.GetKeyVersion(), createdAt: changed.GetRegisteredAt().AsTime(),
	})
	if err != nil || created {
		return err
	}
	event.AfterCommit(ctx, func() { s.changed(ctx, id) })
	return rename(ctx, tx, emit, id, changed.GetUsername(), ev.GetKeyVersion())
}

// onAccountSuspended and onAccountUnsuspended keep whom a search may show.
func (s *Service) onAccountSuspended(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, suspended *authv1.AccountSuspended) error {
	return stand(ctx, tx, suspended.GetAccountId(), true, ev.GetKeyVersion())
}

func (s *Service) onAccountUnsuspended(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, unsuspended *authv1.AccountUnsuspended) error {
	return stand(ctx, tx, unsuspended.GetAccountId(), false, ev.GetKeyVersion())
}

func stand(ctx context.Context, tx pgx.Tx, account string, suspended bool, version int64) error {
	id, err := uuid.Parse(account)
	if err != nil {
		return fmt.Errorf("account id: %w", err)
	}
	err = db.New(tx).StandingUpsert(ctx, db.StandingUpsertParams{UserID: id, Suspended: suspended, Version: version})
	if err != nil {
		return fmt.Errorf("upsert standing: %w", err)
	}
	return nil
}
