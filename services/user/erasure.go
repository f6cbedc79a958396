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
	"github.com/parleychat/parley/pkg/rpc"
	erasurev1 "github.com/parleychat/parley/proto/gen/parley/erasure/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

var errErasureNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_ERASURE_NOT_FOUND,
	"nobody asked for the deletion of this person")

// forget is user's own part: the names, texts and settings of a person. What is left says that there was
// somebody with this id, and when it was deleted: the ledger.
func (s *Service) forget(ctx context.Context, tx pgx.Tx, person uuid.UUID) error {
	queries := db.New(tx)
	event.AfterCommit(ctx, func() { s.changed(ctx, person) })
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

// late lists the services that have had longer than they should to forget somebody.
func (s *Service) late(ctx context.Context) ([]db.ErasureLateRow, error) {
	rows, err := db.New(s.pool).ErasureLate(ctx, s.clock.Now().Add(-s.erasureLate))
	if err != nil {
		return nil, fmt.Errorf("select late erasures: %w", err)
	}
	return rows, nil
}

// warnOfLateErasures says in the log who is late. A service that is down catches up by itself; one that failed
// has the event among its dead letters.
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
