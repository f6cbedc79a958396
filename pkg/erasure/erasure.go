// Package erasure is a domain's half of forgetting a person: it listens to
// user.deleted, has the domain forget, and reports that it has, all in one
// transaction.
//
// It owns the names of the report's type. It keeps nothing: which domains were
// asked and have reported is the ledger of user.
package erasure

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/outbox"
	erasurev1 "github.com/parleychat/parley/proto/gen/parley/erasure/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const (
	source      = "user"
	typeDeleted = "user.deleted"
	// reportVersion: a person is forgotten once, so the report is the first and
	// last version of its key.
	reportVersion = 1
)

// Reported is the type of a domain's report: "auth.person_forgotten".
func Reported(domain string) string { return domain + ".person_forgotten" }

// Listener has a domain forget whoever is deleted. forget removes what the domain
// stores about the person, through tx; it may find nothing to remove. What it
// does, the guard against a second time, and the report commit together: a crash
// leaves all of them or none, and then the event comes again.
func Listener(domain string, out *outbox.Outbox, forget func(ctx context.Context, tx pgx.Tx, person uuid.UUID) error) event.Listener {
	return event.Listener{
		Name: typeDeleted, Source: source, Type: typeDeleted, Mode: event.Once,
		Handle: func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event) error {
			person, err := uuid.Parse(ev.GetKey())
			if err != nil {
				return fmt.Errorf("the person's id: %w", err)
			}
			if err := forget(ctx, tx, person); err != nil {
				return fmt.Errorf("forget person %s: %w", person, err)
			}
			return out.Append(ctx, tx, event.New(Reported(domain), person.String(), reportVersion,
				&erasurev1.PersonForgotten{UserId: person.String()}))
		},
	}
}
