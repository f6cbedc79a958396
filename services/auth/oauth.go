package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var _ authv1connect.OAuthServiceHandler = (*Service)(nil)

var (
	errRedirectNotAllowed = rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_OAUTH_REDIRECT_NOT_ALLOWED,
		"the redirect URI is not among those that are allowed")
	errStateInvalid = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_OAUTH_STATE_INVALID,
		"this log-in is unknown, was used or has expired: begin again")
	errLinkRequired = rpc.Error(connect.CodeFailedPrecondition, errorv1.Reason_REASON_OAUTH_LINK_REQUIRED,
		"an account with this address exists: log in to it and link this way of logging in")
)

const (
	// flowLife is how long somebody may take at the provider.
	flowLife = 10 * time.Minute
	// ticketLife is how long somebody may think about a user name.
	ticketLife = 10 * time.Minute
)

// newOpaque makes a token that nobody guesses, and the form in which it is kept.
func newOpaque() (token string, hash [sha256.Size]byte) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails, by its documentation
	token = base64.RawURLEncoding.EncodeToString(raw[:])
	return token, sha256.Sum256([]byte(token))
}

// ListOAuthProviders implements the RPC.
func (s *Service) ListOAuthProviders(context.Context, *authv1.ListOAuthProvidersRequest) (*authv1.ListOAuthProvidersResponse, error) {
	res := &authv1.ListOAuthProvidersResponse{}
	for _, name := range s.oauth.names() {
		res.Providers = append(res.Providers, &authv1.OAuthProvider{Name: name, DisplayName: s.oauth.providers[name].displayName()})
	}
	return res, nil
}

// StartOAuth implements the RPC.
func (s *Service) StartOAuth(ctx context.Context, req *authv1.StartOAuthRequest) (*authv1.StartOAuthResponse, error) {
	begun, err := s.startFlow(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	return &authv1.StartOAuthResponse{AuthorizationUrl: begun.url, State: begun.state, ExpiresAt: timestamppb.New(begun.expiresAt)}, nil
}

// wantedFlow is what StartOAuth and StartIdentityLink are asked for.
type wantedFlow interface {
	GetProvider() string
	GetRedirectUri() string
	GetClientChallenge() string
}

// begunFlow is what they answer.
type begunFlow struct {
	url, state string
	expiresAt  time.Time
}

// startFlow stores a flow, for the session that wants to link or for nobody, and says where to go.
func (s *Service) startFlow(ctx context.Context, want wantedFlow, session *uuid.UUID) (begunFlow, error) {
	p, ok := s.oauth.providers[want.GetProvider()]
	if !ok {
		return begunFlow{}, errProviderUnknown
	}
	if !slices.Contains(s.oauth.settings.RedirectURIs, want.GetRedirectUri()) {
		return begunFlow{}, errRedirectNotAllowed
	}
	challenge, err := base64.RawURLEncoding.DecodeString(want.GetClientChallenge())
	if err != nil || len(challenge) != sha256.Size {
		return begunFlow{}, rpc.Error(connect.CodeInvalidArgument, errorv1.Reason_REASON_INVALID_ARGUMENT, "client_challenge is no SHA-256")
	}
	// Every flow counts: each takes a row for a while.
	if err := s.attempts.count(ctx, s.addressSubject(ctx, "oauth", s.oauth.settings.StartLimit)...); err != nil {
		return begunFlow{}, err
	}
	state, hash := newOpaque()
	begun := begunFlow{state: state, expiresAt: s.clock.Now().Add(flowLife)}
	if begun.url, err = p.authorizationURL(ctx, s.oauth.legs(state, want.GetRedirectUri())); err != nil {
		return begunFlow{}, err
	}
	err = db.New(s.pool).OAuthFlowPut(ctx, db.OAuthFlowPutParams{
		StateHash: hash[:], Provider: want.GetProvider(), RedirectUri: want.GetRedirectUri(),
		ClientChallenge: challenge, SessionID: session, ExpiresAt: begun.expiresAt,
	})
	if err != nil {
		return begunFlow{}, fmt.Errorf("insert oauth flow: %w", err)
	}
	return begun, nil
}

// returnedFlow is what FinishOAuth and LinkIdentity are given.
type returnedFlow interface {
	GetState() string
	GetCode() string
	GetClientVerifier() string
	GetIssuer() string
}

// finishFlow spends a flow and asks the provider who it was. The flow is gone before anything else happens, and
// committed so: a code or a verifier can be tried once. A process that dies afterwards has the person begin again.
// session is the one that may link; nil: nobody.
func (s *Service) finishFlow(ctx context.Context, back returnedFlow, session *uuid.UUID) (provider string, who person, err error) {
	hash := sha256.Sum256([]byte(back.GetState()))
	flow, err := db.New(s.pool).OAuthFlowTake(ctx, hash[:])
	if errors.Is(err, pgx.ErrNoRows) {
		return "", person{}, errStateInvalid
	}
	if err != nil {
		return "", person{}, fmt.Errorf("take oauth flow: %w", err)
	}
	// The flow belongs to the client that began it, and, for linking, to its session.
	verifier := sha256.Sum256([]byte(back.GetClientVerifier()))
	ownSession := (flow.SessionID == nil) == (session == nil) && (session == nil || *flow.SessionID == *session)
	if !s.clock.Now().Before(flow.ExpiresAt) || subtle.ConstantTimeCompare(verifier[:], flow.ClientChallenge) != 1 || !ownSession {
		return "", person{}, errStateInvalid
	}
	p, ok := s.oauth.providers[flow.Provider]
	if !ok {
		return "", person{}, errProviderUnknown // it was removed meanwhile
	}
	// RFC 9207: the redirect came from another provider than the one that was asked.
	if back.GetIssuer() != "" && back.GetIssuer() != p.issuer() {
		return "", person{}, errOAuthRefused
	}
	ctx, cancel := context.WithTimeout(ctx, s.oauth.settings.Timeout)
	defer cancel()
	who, err = p.person(ctx, back.GetCode(), s.oauth.legs(back.GetState(), flow.RedirectUri))
	return flow.Provider, who, err
}

// FinishOAuth implements the RPC.
func (s *Service) FinishOAuth(ctx context.Context, req *authv1.FinishOAuthRequest) (*authv1.FinishOAuthResponse, error) {
	provider, who, err := s.finishFlow(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	queries := db.New(s.pool)
	owner, err := queries.IdentityOwner(ctx, db.IdentityOwnerParams{Issuer: who.issuer, Subject: who.subject})
	switch {
	case err == nil:
		return s.logInWith(ctx, provider, who, owner, req.GetDeviceName())
	case !errors.Is(err, pgx.ErrNoRows):
		return nil, fmt.Errorf("select identity: %w", err)
	}
	// Only to whom the address belongs, by the provider, is told that there is an account; nobody is let in for it,
	// since the account's address may be unverified, or the provider's word be worth less than a password.
	if who.emailVerified {
		taken, err := queries.EmailOwned(ctx, nameKey(who.email))
		if err != nil {
			return nil, fmt.Errorf("select address: %w", err)
		}
		if taken {
			return nil, errLinkRequired
		}
	}
	return s.offerRegistration(ctx, provider, who)
}

// logInWith begins a session for the owner of an identity, by the one way in: suspension and second factor stand
// before it as before a password.
func (s *Service) logInWith(ctx context.Context, provider string, who person, owner uuid.UUID, device string) (*authv1.FinishOAuthResponse, error) {
	tokens, err := s.admit(ctx, entrance{
		accountID: owner, device: device, proof: map[string]string{"by": provider},
		check: func(ctx context.Context, queries *db.Queries, _ db.AccountForLogInRow) error {
			// Under the account's lock: an identity that was unlinked lets nobody in.
			used, err := queries.IdentityUse(ctx, db.IdentityUseParams{
				UsedAt: s.clock.Now(), Email: who.email, Issuer: who.issuer, Subject: who.subject, AccountID: owner,
			})
			if err != nil {
				return fmt.Errorf("use identity: %w", err)
			}
			if used == 0 {
				return errStateInvalid
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return &authv1.FinishOAuthResponse{Outcome: &authv1.FinishOAuthResponse_LogIn{
		LogIn: &authv1.OAuthLogIn{UserId: owner.String(), Tokens: tokens},
	}}, nil
}

// offerRegistration gives somebody who is new a ticket.
func (s *Service) offerRegistration(ctx context.Context, provider string, who person) (*authv1.FinishOAuthResponse, error) {
	ticket, hash := newOpaque()
	expires := s.clock.Now().Add(ticketLife)
	err := db.New(s.pool).OAuthTicketPut(ctx, db.OAuthTicketPutParams{
		TicketHash: hash[:], Provider: provider, Issuer: who.issuer, Subject: who.subject,
		Email: who.email, EmailVerified: who.emailVerified, Name: who.name, ExpiresAt: expires,
	})
	if err != nil {
		return nil, fmt.Errorf("insert oauth ticket: %w", err)
	}
	return &authv1.FinishOAuthResponse{Outcome: &authv1.FinishOAuthResponse_Registration{Registration: &authv1.OAuthRegistration{
		Ticket: ticket, ExpiresAt: timestamppb.New(expires), Email: who.email, EmailVerified: who.emailVerified, Name: who.name,
	}}}, nil
}

// pruneOAuth deletes flows and tickets whose time is over. They are invalid either way.
func (s *Service) pruneOAuth(ctx context.Context) error {
	queries, before := db.New(s.pool), s.clock.Now()
	return errors.Join(
		prune(func() (int64, error) {
			return queries.OAuthFlowPrune(ctx, db.OAuthFlowPruneParams{Before: before, Batch: pruneBatch})
		}),
		prune(func() (int64, error) {
			return queries.OAuthTicketPrune(ctx, db.OAuthTicketPruneParams{Before: before, Batch: pruneBatch})
		}),
	)
}
