package service_test

import (
	"context"
	"errors"
	"sync"
	"testing/fstest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/job"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/service"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// example is a service as small as can be that uses everything of the runtime: it
// knows people by an event, and tells with an event that somebody was looked up.
type example struct {
	rt *service.Runtime
	// settings are read in Setup.
	settings exampleSettings
	// setup may change what Setup does.
	setup func(rt *service.Runtime) error
	// hold, when set, is called by BatchGetUsers.
	hold func(ctx context.Context)

	mu     sync.Mutex
	events []string // what happened, in order
}

type exampleSettings struct {
	Greeting string `env:"GREETING" default:"hello" doc:"What it says."`
	Limit    int    `env:"LIMIT" default:"3" min:"1"`
}

func (e *example) definition() service.Definition {
	return service.Definition{
		Name: "user",
		Migrations: fstest.MapFS{"0001_person.sql": {Data: []byte(`-- +goose Up
CREATE TABLE person (id uuid PRIMARY KEY, username text NOT NULL, version bigint NOT NULL);`)}},
		Settings: &exampleSettings{},
		Setup: func(_ context.Context, rt *service.Runtime) error {
			e.rt = rt
			if err := rt.Config(&e.settings); err != nil {
				return err
			}
			rt.Handle(userv1connect.NewUserServiceHandler(e, rt.Options()...))
			rt.Listen(event.On("auth", "account.registered", event.ByVersion, e.onRegistered))
			rt.Job(job.Job{Name: "count", Every: time.Hour, Run: func(ctx context.Context) error {
				_, err := rt.DB.Exec(ctx, "SELECT count(*) FROM person")
				return err
			}})
			rt.Go("worker", e.work)
			rt.Ready("custom", func(context.Context) error { return nil })
			if e.setup != nil {
				return e.setup(rt)
			}
			return nil
		},
	}
}

func (e *example) onRegistered(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, p *authv1.AccountRegistered) error {
	_, err := tx.Exec(ctx, `INSERT INTO person (id, username, version) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET username = excluded.username, version = excluded.version
		WHERE person.version < excluded.version`, p.GetAccountId(), p.GetUsername(), ev.GetKeyVersion())
	return err
}

func (e *example) GetUser(ctx context.Context, req *userv1.GetUserRequest) (*userv1.GetUserResponse, error) {
	id := req.GetUserId()
	if id == "" {
		id = identity.From(ctx).UserID.String()
	}
	var user userv1.User
	err := e.rt.Outbox.Tx(ctx, func(tx pgx.Tx, emit func(...*eventv1.Event) error) error {
		row := tx.QueryRow(ctx, "SELECT id::text, username, version FROM person WHERE id = $1", id)
		if err := row.Scan(&user.Id, &user.Username, &user.Version); err != nil {
			return err
		}
		return emit(event.New("user.created", user.GetId(), user.GetVersion(), &userv1.UserCreated{UserId: user.GetId()}))
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND, "no such person")
	}
	return &userv1.GetUserResponse{User: &user}, err
}

func (e *example) BatchGetUsers(ctx context.Context, _ *userv1.BatchGetUsersRequest) (*userv1.BatchGetUsersResponse, error) {
	if e.hold != nil {
		e.hold(ctx)
	}
	e.note("rpc ended")
	return &userv1.BatchGetUsersResponse{}, nil
}

// work writes one more event when it is told to stop: what a worker still holds.
func (e *example) work(ctx context.Context) error {
	<-ctx.Done()
	e.note("worker told to stop")
	ctx = context.WithoutCancel(ctx)
	err := e.rt.Outbox.Tx(ctx, func(_ pgx.Tx, emit func(...*eventv1.Event) error) error {
		id := uuid.NewString()
		return emit(event.New("user.updated", id, 1, &userv1.UserCreated{UserId: id}))
	})
	e.note("worker ended")
	return err
}

func (e *example) note(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, what)
}

func (e *example) journal() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.events...)
}
