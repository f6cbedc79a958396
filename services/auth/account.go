package auth

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var (
	errEmailTaken = rpc.Error(connect.CodeAlreadyExists, errorv1.Reason_REASON_EMAIL_TAKEN,
		"an account with this e-mail address exists")
	errUsernameTaken = rpc.Error(connect.CodeAlreadyExists, errorv1.Reason_REASON_USERNAME_TAKEN,
		"this user name is taken")
	errPasswordWeak = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_PASSWORD_WEAK,
		"this password is among the first that anybody would try")
	errAccountNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_ACCOUNT_NOT_FOUND, "no such account")
)

// account is a person's entry at the time of registration.
type account struct {
	id          uuid.UUID
	username    string
	email       string
	displayName string
	role        identity.Role
	createdAt   time.Time
}

// nameKey is the form in which user names and addresses are compared. Both are ASCII where it matters: the
// proto's pattern for names, and the domain of an address.
func nameKey(name string) string { return strings.ToLower(name) }

// Register implements the RPC.
func (s *Service) Register(ctx context.Context, req *authv1.RegisterRequest) (*authv1.RegisterResponse, error) {
	if err := mailable(req.GetEmail()); err != nil {
		return nil, err
	}
	if err := s.passwords.refuseWeak(req.GetPassword(), req.GetUsername(), req.GetEmail()); err != nil {
		return nil, err
	}
	// Every registration counts, whatever comes of it.
	if err := s.attempts.count(ctx, s.addressSubject(ctx, "register", s.registerLimit)...); err != nil {
		return nil, err
	}
	hash, err := s.passwords.hash(ctx, req.GetPassword())
	if err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make an account's id: %w", err)
	}
	a := account{
		id: id, username: req.GetUsername(), email: req.GetEmail(),
		displayName: cmp.Or(strings.TrimSpace(req.GetDisplayName()), req.GetUsername()),
		role:        identity.RoleUser, createdAt: s.clock.Now(),
	}
	return s.register(ctx, a, hash, req.GetDeviceName())
}

// register commits the account, its first session and the event together, and then waits at the barrier.
func (s *Service) register(ctx context.Context, a account, hash, device string) (*authv1.RegisterResponse, error) {
	session, err := s.newSession(a.id, a.role, a.createdAt)
	if err != nil {
		return nil, err
	}
	// Signed before the commit: an account whose owner got no answer is worse than a token that is thrown away.
	tokens, err := s.tokens(ctx, session)
	if err != nil {
		return nil, err
	}
	barrier := s.bus.NewBarrier(s.registerAwait...)
	defer barrier.Close()
	err = s.guessAddress(ctx, func() error {
		return s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
			queries := db.New(tx)
			if err := createAccount(ctx, queries, a, hash); err != nil {
				return err
			}
			if err := queries.SessionCreate(ctx, session.row(device, s.originOf(ctx))); err != nil {
				return fmt.Errorf("insert session: %w", err)
			}
			if err := s.audit(ctx, queries, auditEntry{action: auditRegistered, account: a.id, session: session.id}, errorv1.Reason_REASON_UNSPECIFIED); err != nil {
				return err
			}
			return emit(barrier.On(accountRegistered(a)))
		})
	})
	if err != nil {
		return nil, err
	}
	s.sendLater(mailRequest{purpose: purposeVerifyEmail, account: recipient{a.id, a.username, a.email}})
	return &authv1.RegisterResponse{
		UserId: a.id.String(), Tokens: tokens, Propagation: barrier.Wait(ctx, event.BarrierTimeout),
	}, nil
}

// guessAddress registers somebody: who does so finds out whether an address has an account. That answer has a low count
// of its own, by the client's address; a registration that comes to something counts for nothing there.
func (s *Service) guessAddress(ctx context.Context, register func() error) error {
	attempt, err := s.attempts.beginPatiently(ctx, s.addressSubject(ctx, "taken", s.loginAddressLimit)...)
	if err != nil {
		return err
	}
	result := attemptVoid
	defer func() { attempt.settle(ctx, result) }()
	err = register()
	if rpc.ReasonOf(err) == errorv1.Reason_REASON_EMAIL_TAKEN {
		result = attemptFailed
	}
	return err
}

func createAccount(ctx context.Context, queries *db.Queries, a account, hash string) error {
	err := queries.AccountCreate(ctx, db.AccountCreateParams{
		ID: a.id, Username: a.username, UsernameKey: nameKey(a.username), Email: a.email, EmailKey: nameKey(a.email),
		DisplayName: a.displayName, Role: a.role.String(), PasswordHash: hash, Version: firstVersion, CreatedAt: a.createdAt,
	})
	switch {
	case err == nil:
		return nil
	case postgres.IsUniqueViolation(err, "account_email_key"):
		return errEmailTaken
	case postgres.IsUniqueViolation(err, "account_username_key"):
		return errUsernameTaken
	default:
		return fmt.Errorf("insert account: %w", err)
	}
}

// BatchGetAccounts implements the RPC.
func (s *Service) BatchGetAccounts(ctx context.Context, req *authv1.BatchGetAccountsRequest) (*authv1.BatchGetAccountsResponse, error) {
	ids := make([]uuid.UUID, 0, len(req.GetIds()))
	for _, raw := range req.GetIds() {
		id, err := uuid.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("parse an id that was validated: %w", err)
		}
		ids = append(ids, id)
	}
	rows, err := db.New(s.pool).AccountsByID(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("select accounts: %w", err)
	}
	res := &authv1.BatchGetAccountsResponse{}
	for _, row := range rows {
		res.Accounts = append(res.Accounts, accountToProto(row))
	}
	return res, nil
}

func accountToProto(row db.AccountsByIDRow) *authv1.Account {
	return &authv1.Account{
		Id: row.ID.String(), Username: row.Username, DisplayName: row.DisplayName,
		CreatedAt: timestamppb.New(row.CreatedAt), Version: row.Version,
	}
}
