package user

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/portability"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

const (
	// exportWindow is what the limit of exports counts over.
	exportWindow = 24 * time.Hour
	// exportTimeout ends an export whose reader hardly reads.
	exportTimeout = 30 * time.Minute
	// exportRetry is the advice while all places are taken.
	exportRetry = 30 * time.Second
)

var (
	errExportsBusy = rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED,
		"too many exports are running"), exportRetry)
	errExportFailed = rpc.Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
		"a part of your data cannot be had at the moment")
)

// exporter is what user asks of the other services: what they store about a person. A generated client of
// PortabilityService, whatever its package, is no more than this.
type exporter interface {
	CallServerStream(ctx context.Context, req *connect.Request[portabilityv1.ExportPersonRequest]) (*connect.ServerStreamForClient[portabilityv1.ExportPersonResponse], error)
}

// dialExporters makes a client for each service of the deployment but this one. They all have the same method,
// each in its own package, so that the closed list of calls names each callee.
func dialExporters(rt *service.Runtime) map[string]exporter {
	exporters := make(map[string]exporter, len(rt.Services))
	for _, name := range rt.Services {
		if name == rt.Name {
			continue
		}
		client, url, option := rt.Dial(name)
		exporters[name] = connect.NewClient[portabilityv1.ExportPersonRequest, portabilityv1.ExportPersonResponse](
			client, url+"/parley."+name+".v1.PortabilityService/ExportPerson", option)
	}
	return exporters
}

// ExportData implements the RPC. No connection to the database is held while the reader is waited for.
func (s *Service) ExportData(ctx context.Context, _ *userv1.ExportDataRequest, stream *connect.ServerStream[userv1.ExportDataResponse]) error {
	if len(s.services) == 0 {
		return errServicesUnknown
	}
	id := identity.From(ctx).UserID
	if _, err := s.own(ctx, id); err != nil {
		return err
	}
	if err := s.confirmed(ctx); err != nil {
		return err
	}
	leave, err := s.enterExports(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	run, err := s.countExport(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	stream.ResponseHeader().Set("Cache-Control", "no-store")
	archive := newArchive(id, s.clock.Now(), func(data []byte) error {
		return stream.Send(&userv1.ExportDataResponse{Data: data})
	})
	for _, name := range slices.Sorted(slices.Values(s.services)) {
		if err := s.exportFrom(ctx, name, id, archive); err != nil {
			s.uncount(ctx, run, err)
			return err
		}
	}
	return archive.close()
}

// enterExports takes a place, unless the person has one here already: whoever stops reading shall not take all
// of them. leave gives it back. How often it is tried is bounded apart from how often it is done.
func (s *Service) enterExports(ctx context.Context, id uuid.UUID) (leave func(), err error) {
	if err := s.pace.update(ctx); err != nil {
		return nil, err
	}
	if _, running := s.exporting.LoadOrStore(id, true); running {
		return nil, errExportsBusy
	}
	select {
	case s.exports <- struct{}{}:
		return func() { <-s.exports; s.exporting.Delete(id) }, nil
	default:
		s.exporting.Delete(id)
		return nil, errExportsBusy
	}
}

// uncount takes an export back from the count of the day that failed by our fault.
func (s *Service) uncount(ctx context.Context, run uuid.UUID, cause error) {
	if !errors.Is(cause, errExportFailed) {
		return
	}
	if err := db.New(s.pool).ExportRunCancel(ctx, run); err != nil {
		s.log.WarnContext(ctx, "an export that failed counts for the day", "error", err)
	}
}

// countExport refuses the one too many. The profile's lock makes a person's exports take turns here, so that
// many at once are counted like many after each other. One that its reader breaks off counts too: it has cost
// as much.
func (s *Service) countExport(ctx context.Context, id uuid.UUID) (run uuid.UUID, err error) {
	if run, err = uuid.NewV7(); err != nil {
		return run, fmt.Errorf("make an export's id: %w", err)
	}
	err = s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		if _, err := profileForUpdate(ctx, tx, id); err != nil {
			return err
		}
		now := s.clock.Now()
		past, err := db.New(tx).ExportRunCount(ctx, db.ExportRunCountParams{UserID: id, Since: now.Add(-exportWindow)})
		if err != nil {
			return fmt.Errorf("count exports: %w", err)
		}
		if past.Runs >= s.exportsPerDay {
			return rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED,
				"only %d exports a day", s.exportsPerDay), past.Oldest.Add(exportWindow).Sub(now))
		}
		err = db.New(tx).ExportRunCreate(ctx, db.ExportRunCreateParams{ID: run, UserID: id, StartedAt: now})
		if err != nil {
			return fmt.Errorf("note the export: %w", err)
		}
		return emit(dataExported(run, id, now))
	})
	return run, err
}

// exportFrom adds what one service stores to the archive.
func (s *Service) exportFrom(ctx context.Context, name string, id uuid.UUID, to *archive) error {
	to.folder(name)
	from, other := s.exporters[name]
	if !other {
		return s.exportOwn(ctx, id, portability.To(to.add))
	}
	stream, err := from.CallServerStream(ctx, connect.NewRequest(&portabilityv1.ExportPersonRequest{UserId: id.String()}))
	if err != nil {
		return s.exportFailed(ctx, name, err)
	}
	for stream.Receive() {
		if err := to.add(stream.Msg()); err != nil {
			_ = stream.Close() // the archive's error is the one that counts
			return err
		}
	}
	err = stream.Err()
	if closeErr := stream.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return s.exportFailed(ctx, name, err)
	}
	return nil
}

// exportFailed hides why from the person, unless it is that the person has gone.
func (s *Service) exportFailed(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.log.ErrorContext(ctx, "a service does not hand out what it stores", "callee", name, "error", err)
	return errExportFailed
}

// ownProfile and ownDeletion are what this service stores about a person, for the archive.
type ownProfile struct {
	ID           string    `json:"id"`
	Username     string    `json:"username"`
	DisplayName  string    `json:"display_name"`
	Bio          string    `json:"bio"`
	Locale       string    `json:"locale"`
	Discoverable bool      `json:"discoverable"`
	CreatedAt    time.Time `json:"created_at"`
	Version      int64     `json:"version"`
}

type ownDeletion struct {
	RequestedAt time.Time `json:"requested_at"`
	DueAt       time.Time `json:"due_at"`
}

// ownStanding is what is known of a suspension here.
type ownStanding struct {
	Suspended bool `json:"suspended"`
}

func (s *Service) exportOwn(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	row, err := s.own(ctx, id)
	if err != nil {
		return err
	}
	err = files.JSON("profile.json", ownProfile{
		ID: id.String(), Username: row.Username, DisplayName: row.DisplayName, Bio: row.Bio, Locale: row.Locale,
		Discoverable: row.Discoverable, CreatedAt: row.CreatedAt.UTC(), Version: row.Version,
	})
	if err != nil {
		return err
	}
	deletion, err := s.deletion(ctx, id)
	if err != nil {
		return err
	}
	if deletion != nil {
		err = files.JSON("deletion.json", ownDeletion{deletion.GetRequestedAt().AsTime(), deletion.GetDueAt().AsTime()})
		if err != nil {
			return err
		}
	}
	if err := exportPresence(ctx, s.pool, id, files); err != nil {
		return err
	}
	if err := s.exportTraces(ctx, id, files); err != nil {
		return err
	}
	return files.Flush()
}

// exportTraces adds what is kept about a person for rules to hold.
func (s *Service) exportTraces(ctx context.Context, id uuid.UUID, files *portability.Files) error {
	queries := db.New(s.pool)
	runs, err := queries.ExportRunByUser(ctx, id)
	if err != nil {
		return fmt.Errorf("select exports: %w", err)
	}
	for i := range runs {
		runs[i] = runs[i].UTC()
	}
	if err := files.JSON("exports.json", runs); err != nil {
		return err
	}
	suspended, err := queries.StandingByUser(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("select standing: %w", err)
	}
	return files.JSON("standing.json", ownStanding{Suspended: suspended})
}

// pruneExports forgets the exports that no limit counts any more.
func (s *Service) pruneExports(ctx context.Context) error {
	if err := db.New(s.pool).ExportRunPrune(ctx, s.clock.Now().Add(-exportWindow)); err != nil {
		return fmt.Errorf("prune exports: %w", err)
	}
	return nil
}
