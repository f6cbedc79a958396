package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var (
	errTicketInvalid = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_TICKET_INVALID,
		"this registration is unknown, was used or has expired: begin again")
	errEmailRequired = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_EMAIL_REQUIRED,
		"the provider gave no e-mail address, give one")
)

// noPassword is the stored form of a password that does not exist: nothing matches it.
const noPassword = ""

// RegisterWithOAuth implements the RPC.
func (s *Service) RegisterWithOAuth(ctx context.Context, req *authv1.RegisterWithOAuthRequest) (*authv1.RegisterWithOAuthResponse, error) {
	if req.GetEmail() != "" {
		if err := mailable(req.GetEmail()); err != nil {
			return nil, err
		}
	}
	// Every registration counts, whatever comes of it.
	if err := s.attempts.count(ctx, s.addressSubject(ctx, "register", s.registerLimit)...); err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make an account's id: %w", err)
	}
	a := account{
		id: id, username: req.GetUsername(), email: req.GetEmail(), displayName: strings.TrimSpace(req.GetDisplayName()),
		role: identity.RoleUser, createdAt: s.clock.Now(),
	}
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
	verified := false
	entry := auditEntry{action: auditRegistered, account: a.id, session: session.id}
	err = s.guessAddress(ctx, func() error {
		return s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) (err error) {
			if a, verified, err = s.createWithTicket(ctx, queries, a, req.GetTicket(), &entry); err != nil {
				return err
			}
			if err := queries.SessionCreate(ctx, session.row(req.GetDeviceName(), s.originOf(ctx))); err != nil {
				return fmt.Errorf("insert session: %w", err)
			}
			return emit(barrier.On(accountRegistered(a)))
		})
	})
	if err != nil {
		return nil, err
	}
	if !verified {
		s.sendLater(mailRequest{purpose: purposeVerifyEmail, account: recipient{a.id, a.username, a.email}})
	}
	return &authv1.RegisterWithOAuthResponse{
		UserId: a.id.String(), Tokens: tokens, Propagation: barrier.Wait(ctx, event.BarrierTimeout),
	}, nil
}

// createWithTicket takes the ticket and makes account and identity of it. What fails gives the ticket back, with
// the transaction.
func (s *Service) createWithTicket(
	ctx context.Context, queries *db.Queries, a account, ticket string, entry *auditEntry,
) (created account, verified bool, err error) {
	hash := sha256.Sum256([]byte(ticket))
	row, err := queries.OAuthTicketTake(ctx, db.OAuthTicketTakeParams{TicketHash: hash[:], Now: a.createdAt})
	if errors.Is(err, pgx.ErrNoRows) {
		return a, false, errTicketInvalid
	}
	if err != nil {
		return a, false, fmt.Errorf("take oauth ticket: %w", err)
	}
	a.email = cmp.Or(a.email, row.Email)
	a.displayName = cmp.Or(a.displayName, row.Name, a.username)
	if a.email == "" {
		return a, false, errEmailRequired
	}
	entry.details = map[string]string{"by": row.Provider}
	if err := createAccount(ctx, queries, a, noPassword); err != nil {
		return a, false, err
	}
	// The provider vouches for its own address only.
	verified = row.EmailVerified && nameKey(a.email) == nameKey(row.Email)
	if verified {
		_, err := queries.AccountVerifyEmail(ctx, db.AccountVerifyEmailParams{VerifiedAt: a.createdAt, ID: a.id, Email: a.email})
		if err != nil {
			return a, false, fmt.Errorf("verify address: %w", err)
		}
	}
	who := person{issuer: row.Issuer, subject: row.Subject, email: row.Email}
	_, err = createIdentity(ctx, queries, a.id, row.Provider, who, a.createdAt, &a.createdAt)
	return a, verified, err
}
