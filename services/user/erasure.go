package user

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/presence"
	"github.com/parleychat/parley/pkg/rpc"
	erasurev1 "github.com/parleychat/parley/proto/gen/parley/erasure/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

var errErasureNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_ERASURE_NOT_FOUND,
	"nobody asked for the deletion of this person")

// forget is user's own part: the names, texts and settings of a person. What is left says that there was
// somebody with this id, and when it was deleted: the ledger.
func (s *Service) forget(ctx context.Context, tx pgx.Tx, person uuid.UUID) error {
	queries := db.New(tx)
	event.AfterCommit(ctx, func() { s.changed(ctx, person); s.tellGone(ctx, person) })
	if err := queries.ProfileForget(ctx, db.ProfileForgetParams{ID: person, DeletedAt: s.clock.Now()}); err != nil {
		return fmt.Errorf("empty the profile: %w", err)
	}
	if err := queries.StandingForget(ctx, person); err != nil {
		return fmt.Errorf("delete the standing: %w", err)
	}
	if err := queries.ExportRunForget(ctx, person); err != nil {
		return fmt.Errorf("delete the exports: %w", err)
	}
	if err := queries.PresenceForget(ctx, person); err != nil {
		return fmt.Errorf("delete the presence: %w", err)
	}
	return nil
}

// tellGone has those who watch somebody see that there is nobody any more. It is a
// hint: who was connected is told of once more by the judge when the sockets end,
// and whoever watches anew is answered so.
func (s *Service) tellGone(ctx context.Context, person uuid.UUID) {
	ctx = context.WithoutCancel(ctx) // the commit stands
	err := presence.Publish(ctx, s.conn, []*realtimev1.PresenceSignal{lastSignal(person)})
	if err == nil {
		err = presence.PublishRechecks(ctx, s.conn, presence.Pair{User: person})
	}
	if err != nil {
		s.log.WarnContext(ctx, "those who watch a deleted person were not told", "error", err)
	}
}

// onPersonForgotten notes in the ledger that a service has forgotten a person. Who reports is known by the
// stream, which only the service itself may write.
func (s *Service) onPersonForgotten(ctx context.Context, tx pgx.Tx, service string, ev *eventv1.Event, forgotten *erasurev1.PersonForgotten) error {
	id, err := uuid.Parse(forgotten.GetUserId())
	if err != nil {
		return fmt.Errorf("the person's id: %w", err)
	}
	err = db.New(tx).ErasureDone(ctx, db.ErasureDoneParams{UserID: id, Service: service, At: ev.GetTime().AsTime()})
	if err != nil {
		return fmt.Errorf("note in the ledger: %w", err)
	}
	return nil
}

// GetErasure implements the RPC.
func (s *Service) GetErasure(ctx context.Context, req *userv1.GetErasureRequest) (*userv1.GetErasureResponse, error) {
	id, err := uuid.Parse(req.GetUserId())
	if err != nil {
		return nil, fmt.Errorf("parse an id that was validated: %w", err)
	}
	queries := db.New(s.pool)
	row, err := queries.DeletionByUser(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errErasureNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("select deletion: %w", err)
	}
	ledger, err := queries.ErasureByUser(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("select the ledger: %w", err)
	}
	if err := s.viewed(ctx, id); err != nil {
		return nil, err
	}
	res := &userv1.GetErasureResponse{RequestedAt: timestamppb.New(row.RequestedAt), DueAt: timestamppb.New(row.DueAt)}
	if row.DeletedAt != nil {
		res.DeletedAt = timestamppb.New(*row.DeletedAt)
	}
	for _, line := range ledger {
		service := &userv1.ServiceErasure{Service: line.Service, RequestedAt: timestamppb.New(line.RequestedAt)}
		if line.DoneAt != nil {
			service.DoneAt = timestamppb.New(*line.DoneAt)
		}
		res.Services = append(res.Services, service)
	}
	return res, nil
}

// viewed notes who has looked, for the record: before the answer, so that nobody has
// seen it who does not stand there. That the caller is an admin is in the token; who
// loses the role loses the sessions at once (auth), and nobody else knows roles.
func (s *Service) viewed(ctx context.Context, person uuid.UUID) error {
	view, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make a view's id: %w", err)
	}
	return s.outbox.Tx(ctx, func(_ pgx.Tx, emit emitFunc) error {
		return emit(erasureViewed(view, person, identity.From(ctx).UserID, s.clock.Now()))
	})
}

// RepeatErasures implements the RPC. It only opens the lines; watchErasures tells.
func (s *Service) RepeatErasures(ctx context.Context, req *userv1.RepeatErasuresRequest) (*userv1.RepeatErasuresResponse, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make a repetition's id: %w", err)
	}
	since := req.GetDeletedSince().AsTime()
	res := &userv1.RepeatErasuresResponse{}
	err = s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		queries, now := db.New(tx), s.clock.Now()
		if err := queries.ErasureReopen(ctx, db.ErasureReopenParams{Now: now, Since: since}); err != nil {
			return fmt.Errorf("open the ledger again: %w", err)
		}
		if res.People, err = queries.ErasureReopened(ctx, since); err != nil {
			return fmt.Errorf("have deletions told again: %w", err)
		}
		return emit(erasuresRepeated(id, identity.From(ctx).UserID, since, now))
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// watchErasures tells user.deleted again where the ledger has been open for long,
// and says who is late.
func (s *Service) watchErasures(ctx context.Context) error {
	return errors.Join(s.repeatErasures(ctx), s.warnOfLateErasures(ctx))
}

// repeatErasures emits user.deleted again, one person per transaction: a service may
// have been away for longer than the stream keeps events, or its dead letter was
// dropped. Those who have forgotten the person find nothing, and report once more.
func (s *Service) repeatErasures(ctx context.Context) error {
	for {
		found := false
		err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
			queries, now := db.New(tx), s.clock.Now()
			row, err := queries.ErasureOpenSince(ctx, now.Add(-s.erasureRepeat))
			if found = err == nil; errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("select an open erasure: %w", err)
			}
			if err := queries.ErasureTold(ctx, db.ErasureToldParams{UserID: row.UserID, ToldAt: now}); err != nil {
				return fmt.Errorf("note that it was told again: %w", err)
			}
			return emit(userDeleted(row.UserID, row.Version, row.DeletedAt))
		})
		if err != nil || !found {
			return err
		}
	}
}

// late lists the services that have had longer than they should to forget somebody.
func (s *Service) late(ctx context.Context) ([]db.ErasureLateRow, error) {
	rows, err := db.New(s.pool).ErasureLate(ctx, s.clock.Now().Add(-s.erasureLate))
	if err != nil {
		return nil, fmt.Errorf("select late erasures: %w", err)
	}
	return rows, nil
}

// warnOfLateErasures says in the log who is late. A service that is down catches up by itself; one that failed
// has the event among its dead letters, and is told again in any case.
func (s *Service) warnOfLateErasures(ctx context.Context) error {
	rows, err := s.late(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		s.log.WarnContext(ctx, "a service has not forgotten deleted people: look at its dead letters",
			"late", row.Service, "people", row.People, "oldest", row.Oldest)
	}
	return nil
}

// observeErasures serves the metric user_erasures_late until ctx ends. It is read from the ledger when it is
// asked for, so every replica tells the same.
func (s *Service) observeErasures(ctx context.Context) error {
	meter := otel.Meter("github.com/parleychat/parley/services/user")
	gauge, err := meter.Int64ObservableGauge("user_erasures_late",
		metric.WithDescription("Deleted people whom a service should have forgotten by now."))
	if err != nil {
		return fmt.Errorf("make user_erasures_late: %w", err)
	}
	registration, err := meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		rows, err := s.late(ctx)
		if err != nil {
			return err
		}
		people := make(map[string]int64, len(s.services))
		for _, row := range rows {
			people[row.Service] = row.People
		}
		for _, service := range s.services {
			o.ObserveInt64(gauge, people[service], metric.WithAttributes(attribute.String("late", service)))
		}
		return nil
	}, gauge)
	if err != nil {
		return fmt.Errorf("register user_erasures_late: %w", err)
	}
	<-ctx.Done()
	if err := registration.Unregister(); err != nil {
		return fmt.Errorf("unregister user_erasures_late: %w", err)
	}
	return nil
}
