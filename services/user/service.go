// Package user owns profiles: what people see of each other. It also carries out
// what concerns all that is stored about a person: deletion and export.
//
// Invariants: a person has one profile, made when their account is first heard of, be it by the event
// account.registered or by asking auth; it is told once, by user.created, in the same transaction; a
// profile's version rises by one with every change, and each is told. Who was deleted stays as a profile
// without anything to read, and never comes back; user.deleted is told when the grace period is over, and again while
// the ledger, which is opened in the same transaction, holds a service that has yet to forget. What is told about who is online
// carries a version that rises in the order of the commits; to others no presence shows what an invisible person does.
//
// It never makes up a person: an id that neither a profile nor auth knows is not found, and while auth
// cannot be asked the answer is "unavailable", not "not found". A search never tells that somebody is hidden.
package user

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/limit"
	"github.com/parleychat/parley/pkg/outbox"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

var (
	_ userv1connect.UserServiceHandler      = (*Service)(nil)
	_ userv1connect.ProfileServiceHandler   = (*Service)(nil)
	_ userv1connect.DirectoryServiceHandler = (*Service)(nil)
	_ userv1connect.DeletionServiceHandler  = (*Service)(nil)
	_ userv1connect.ExportServiceHandler    = (*Service)(nil)
)

// accounts is what user asks of auth about people; the generated client satisfies it.
type accounts interface {
	BatchGetAccounts(ctx context.Context, req *authv1.BatchGetAccountsRequest) (*authv1.BatchGetAccountsResponse, error)
}

// confirmations is what user asks of auth before what cannot be taken back; the
// generated client satisfies it.
type confirmations interface {
	CheckConfirmation(ctx context.Context, req *authv1.CheckConfirmationRequest) (*authv1.CheckConfirmationResponse, error)
}

// Service implements the services of package userv1connect.
type Service struct {
	pool          *pgxpool.Pool
	outbox        *outbox.Outbox
	accounts      accounts
	confirmations confirmations
	conn          *nats.Conn
	clock         clock.Clock
	log           *slog.Logger

	searches *limit.Limiter
	pace     *pace
	profiles *cache.Cache[uuid.UUID, *userv1.User]

	// services are all of the deployment, this one among them. Without any, nobody
	// is deleted and nothing exported: it would be done by halves.
	services []string
	// exporters are the services but this one.
	exporters map[string]exporter
	// exports has room for those that run at once; exporting are the people whose
	// they are, each one's once.
	exports   chan struct{}
	exporting sync.Map

	confirmationAge time.Duration
	deletionGrace   time.Duration
	erasureLate     time.Duration
	erasureRepeat   time.Duration
	exportsPerDay   int64
}
