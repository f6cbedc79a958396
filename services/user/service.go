// Package user owns profiles: what people see of each other.
//
// Invariants: a person has one profile, made when their account is first heard of, be it by the event
// account.registered or by asking auth; it is told once, by user.created, in the same transaction.
//
// It never makes up a person: an id that neither a profile nor auth knows is not found, and while auth
// cannot be asked the answer is "unavailable", not "not found".
package user

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/parleychat/parley/pkg/outbox"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

var _ userv1connect.UserServiceHandler = (*Service)(nil)

// accounts is what user asks of auth; the generated client satisfies it.
type accounts interface {
	BatchGetAccounts(ctx context.Context, req *authv1.BatchGetAccountsRequest) (*authv1.BatchGetAccountsResponse, error)
}

// Service implements userv1connect.UserServiceHandler.
type Service struct {
	pool     *pgxpool.Pool
	outbox   *outbox.Outbox
	accounts accounts
	log      *slog.Logger
}
