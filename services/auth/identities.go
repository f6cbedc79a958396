package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/mail"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var (
	errIdentityTaken = rpc.Error(connect.CodeAlreadyExists, errorv1.Reason_REASON_IDENTITY_TAKEN,
		"this identity belongs to an account already")
	errProviderLinked = rpc.Error(connect.CodeAlreadyExists, errorv1.Reason_REASON_IDENTITY_PROVIDER_LINKED,
		"the account has an identity of this provider")
	errIdentityNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_IDENTITY_NOT_FOUND, "no such identity")
	errLastLoginMethod  = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_LAST_LOGIN_METHOD,
		"nothing else would be left to log in with: set a password first")
	errConfirmationRequired = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED,
		"log in anew, then try again")
)

// What the record calls it.
const (
	auditIdentityLinkStarted = "identity.link_started"
	auditIdentityLinked      = "identity.linked"
	auditIdentityUnlinked    = "identity.unlinked"
)

// confirmedFor is how long a log-in proves who sits there, for accounts without a password.
const confirmedFor = 10 * time.Minute

// proveOwner asks for the password before the ways to log in, the address or the second factor change; of an account that has none, for a log-in just
// now. It returns the state that was checked, for lockChecked.
func (s *Service) proveOwner(ctx context.Context, action string, caller identity.Caller, password string) (db.AccountOwnRow, error) {
	row, err := s.ownAccount(ctx, caller.UserID)
	if err != nil || row.PasswordHash != noPassword {
		if err == nil {
			row, err = s.confirmPassword(ctx, action, caller.UserID, password)
		}
		return row, err
	}
	now := s.clock.Now()
	at, err := db.New(s.pool).SessionConfirmed(ctx, db.SessionConfirmedParams{ID: caller.SessionID, AccountID: caller.UserID, Now: now})
	if errors.Is(err, pgx.ErrNoRows) {
		return row, errSessionEnded
	}
	if err != nil {
		return row, fmt.Errorf("select confirmation: %w", err)
	}
	if now.Sub(at) > confirmedFor {
		return row, errConfirmationRequired
	}
	return row, nil
}

// StartIdentityLink implements the RPC.
func (s *Service) StartIdentityLink(ctx context.Context, req *authv1.StartIdentityLinkRequest) (*authv1.StartIdentityLinkResponse, error) {
	caller := identity.From(ctx)
	if _, err := s.proveOwner(ctx, auditIdentityLinkStarted, caller, req.GetPassword()); err != nil {
		return nil, err
	}
	rows, err := db.New(s.pool).IdentityList(ctx, caller.UserID)
	if err != nil {
		return nil, fmt.Errorf("select identities: %w", err)
	}
	for _, row := range rows {
		if row.Provider == req.GetProvider() {
			return nil, errProviderLinked
		}
	}
	begun, err := s.startFlow(ctx, req, &caller.SessionID)
	if err != nil {
		return nil, err
	}
	started := auditEntry{action: auditIdentityLinkStarted, account: caller.UserID, details: map[string]string{"provider": req.GetProvider()}}
	if err := s.audit(ctx, db.New(s.pool), started, errorv1.Reason_REASON_UNSPECIFIED); err != nil {
		return nil, err
	}
	return &authv1.StartIdentityLinkResponse{AuthorizationUrl: begun.url, State: begun.state, ExpiresAt: timestamppb.New(begun.expiresAt)}, nil
}

// LinkIdentity implements the RPC.
func (s *Service) LinkIdentity(ctx context.Context, req *authv1.LinkIdentityRequest) (*authv1.LinkIdentityResponse, error) {
	caller := identity.From(ctx)
	provider, who, err := s.finishFlow(ctx, req, &caller.SessionID)
	if err != nil {
		return nil, err
	}
	res := &authv1.LinkIdentityResponse{}
	entry := auditEntry{action: auditIdentityLinked, account: caller.UserID, details: map[string]string{"provider": provider}}
	err = s.act(ctx, &entry, func(queries *db.Queries, _ emitFunc) error {
		// The lock orders this with a log-out everywhere: a session that has ended by now links nothing.
		row, err := s.lockOwn(ctx, queries, caller)
		if err != nil {
			return err
		}
		now := s.clock.Now()
		id, err := createIdentity(ctx, queries, caller.UserID, provider, who, now, nil)
		if err != nil {
			return err
		}
		res.Identity = &authv1.LinkedIdentity{Id: id.String(), Provider: provider, Email: who.email, LinkedAt: timestamppb.New(now)}
		return s.notice(ctx, queries, recipient{caller.UserID, row.Username, row.Email}, mail.IdentityLinked, s.withProvider(ctx, provider))
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return res, nil
}

// withProvider is what a notice about an identity says.
func (s *Service) withProvider(ctx context.Context, name string) map[string]string {
	data := s.callOrigin(ctx)
	data["provider"] = name
	if p, ok := s.oauth.providers[name]; ok {
		data["provider"] = p.displayName()
	}
	return data
}

func createIdentity(
	ctx context.Context, queries *db.Queries, account uuid.UUID, provider string, who person, linkedAt time.Time, usedAt *time.Time,
) (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return id, fmt.Errorf("make an identity's id: %w", err)
	}
	err = queries.IdentityCreate(ctx, db.IdentityCreateParams{
		ID: id, AccountID: account, Provider: provider, Issuer: who.issuer, Subject: who.subject, Email: who.email,
		LinkedAt: linkedAt, LastUsedAt: usedAt,
	})
	switch {
	case err == nil:
		return id, nil
	case postgres.IsUniqueViolation(err, "oauth_identity_subject"):
		return id, errIdentityTaken
	case postgres.IsUniqueViolation(err, "oauth_identity_provider"):
		return id, errProviderLinked
	default:
		return id, fmt.Errorf("insert identity: %w", err)
	}
}

// UnlinkIdentity implements the RPC.
func (s *Service) UnlinkIdentity(ctx context.Context, req *authv1.UnlinkIdentityRequest) (*authv1.UnlinkIdentityResponse, error) {
	caller := identity.From(ctx)
	id, err := uuid.Parse(req.GetIdentityId())
	if err != nil {
		return nil, fmt.Errorf("parse an id that was validated: %w", err)
	}
	checked, err := s.proveOwner(ctx, auditIdentityUnlinked, caller, req.GetPassword())
	if err != nil {
		return nil, err
	}
	res := &authv1.UnlinkIdentityResponse{}
	entry := auditEntry{action: auditIdentityUnlinked, account: caller.UserID}
	err = s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) error {
		// Two that unlink at once take turns here, so the second sees what is left.
		row, err := s.lockChecked(ctx, queries, caller, checked)
		if err != nil {
			return err
		}
		provider, err := queries.IdentityDelete(ctx, db.IdentityDeleteParams{ID: id, AccountID: caller.UserID})
		if errors.Is(err, pgx.ErrNoRows) {
			return errIdentityNotFound
		}
		if err != nil {
			return fmt.Errorf("delete identity: %w", err)
		}
		entry.details = map[string]string{"provider": provider}
		left, err := queries.AccountCanLogIn(ctx, db.AccountCanLogInParams{ID: caller.UserID, Issuers: s.oauth.issuers()})
		if err != nil {
			return fmt.Errorf("count ways to log in: %w", err)
		}
		if !left {
			return errLastLoginMethod
		}
		if err := s.notice(ctx, queries, recipient{caller.UserID, row.Username, row.Email}, mail.IdentityUnlinked, s.withProvider(ctx, provider)); err != nil {
			return err
		}
		res.RevokedSessions, err = s.revokeAll(ctx, queries, caller.UserID, caller.SessionID, emit)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.noticesWait()
	return res, nil
}

// ListIdentities implements the RPC.
func (s *Service) ListIdentities(ctx context.Context, _ *authv1.ListIdentitiesRequest) (*authv1.ListIdentitiesResponse, error) {
	me := identity.From(ctx).UserID
	row, err := s.ownAccount(ctx, me)
	if err != nil {
		return nil, err
	}
	rows, err := db.New(s.pool).IdentityList(ctx, me)
	if err != nil {
		return nil, fmt.Errorf("select identities: %w", err)
	}
	res := &authv1.ListIdentitiesResponse{Password: row.PasswordHash != noPassword}
	for _, row := range rows {
		res.Identities = append(res.Identities, &authv1.LinkedIdentity{
			Id: row.ID.String(), Provider: row.Provider, Email: row.Email,
			LinkedAt: timestamppb.New(row.LinkedAt), LastUsedAt: timeToProto(row.LastUsedAt),
		})
	}
	return res, nil
}
