package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var (
	errCredentials = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_CREDENTIALS_INVALID,
		"unknown account or wrong password")
	errRefreshInvalid = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_INVALID,
		"the refresh token is unknown, expired or revoked")
	errRefreshReused = rpc.Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_REFRESH_TOKEN_REUSED,
		"the refresh token was used before, the session is ended")
)

// sessionPolicy is how long things last. Zero lifetimes never reach it: configuration has bounds.
type sessionPolicy struct {
	accessLife time.Duration
	absolute   time.Duration
	idle       time.Duration
}

// accessExpiry is when a token issued now ends: never after its session.
func (p sessionPolicy) accessExpiry(now, sessionExpires time.Time) time.Time {
	return earlier(now.Add(p.accessLife), sessionExpires)
}

// idleExpiry is when a session ends that was refreshed now and never again.
func (p sessionPolicy) idleExpiry(now, sessionExpires time.Time) time.Time {
	return earlier(now.Add(p.idle), sessionExpires)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// session is a session together with the refresh token that its client gets.
type session struct {
	id            uuid.UUID
	accountID     uuid.UUID
	role          identity.Role
	refresh       refreshToken
	issuedAt      time.Time
	expiresAt     time.Time
	idleExpiresAt time.Time
}

func (s *Service) newSession(accountID uuid.UUID, role identity.Role, now time.Time) (session, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return session{}, fmt.Errorf("make a session's id: %w", err)
	}
	expires := now.Add(s.policy.absolute)
	return session{
		id: id, accountID: accountID, role: role, refresh: s.refresh.first(id), issuedAt: now,
		expiresAt: expires, idleExpiresAt: s.policy.idleExpiry(now, expires),
	}, nil
}

func (e session) row(device string) db.SessionCreateParams {
	hash := e.refresh.hash()
	return db.SessionCreateParams{
		ID: e.id, AccountID: e.accountID, DeviceName: device, TokenHash: hash[:],
		CreatedAt: e.issuedAt, ExpiresAt: e.expiresAt, IdleExpiresAt: e.idleExpiresAt,
	}
}

// tokens signs an access token and writes down the pair for the client.
func (s *Service) tokens(ctx context.Context, e session) (*authv1.Tokens, error) {
	key, err := s.keys.signing(ctx)
	if err != nil {
		return nil, err
	}
	expires := s.policy.accessExpiry(e.issuedAt, e.expiresAt)
	access, err := token.SignAccess(key, token.Claims{
		UserID: e.accountID, SessionID: e.id, Role: e.role, IssuedAt: e.issuedAt, ExpiresAt: expires,
	}, s.issuer, s.audience)
	if err != nil {
		return nil, err
	}
	return &authv1.Tokens{
		AccessToken: access, AccessTokenExpiresAt: timestamppb.New(expires.Truncate(time.Second)),
		RefreshToken: e.refresh.String(), SessionExpiresAt: timestamppb.New(e.idleExpiresAt), SessionId: e.id.String(),
	}, nil
}

// LogIn implements the RPC. An unknown account takes the same way as a known one, with a decoy for the
// hash, and counts by the name that was tried: neither answer, time nor limit tells them apart.
func (s *Service) LogIn(ctx context.Context, req *authv1.LogInRequest) (*authv1.LogInResponse, error) {
	login := nameKey(req.GetLogin())
	subjects := append(s.addressSubject(ctx, "login", s.loginAddressLimit), accountSubject(login, s.loginLimit))
	attempt, err := s.attempts.begin(ctx, subjects...)
	if err != nil {
		return nil, err
	}
	result := attemptVoid
	defer func() { attempt.settle(ctx, result) }()
	row, err := db.New(s.pool).AccountCredentials(ctx, login)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("select credentials: %w", err)
	}
	// Without a row the stored form is empty, which stands for the decoy.
	matches, err := s.passwords.matches(ctx, row.PasswordHash, req.GetPassword())
	if err != nil {
		return nil, err
	}
	if !matches {
		result = attemptFailed
		return nil, errCredentials
	}
	result = attemptSucceeded
	return s.begin(ctx, row, req.GetPassword(), req.GetDeviceName())
}

// begin starts a session for somebody whose password was right.
func (s *Service) begin(ctx context.Context, row db.AccountCredentialsRow, password, device string) (*authv1.LogInResponse, error) {
	role, err := identity.ParseRole(row.Role)
	if err != nil {
		return nil, fmt.Errorf("role of account %s: %w", row.ID, err)
	}
	session, err := s.newSession(row.ID, role, s.clock.Now())
	if err != nil {
		return nil, err
	}
	tokens, err := s.tokens(ctx, session)
	if err != nil {
		return nil, err
	}
	queries := db.New(s.pool)
	if err := queries.SessionCreate(ctx, session.row(device)); err != nil {
		return nil, fmt.Errorf("insert session: %w", err)
	}
	if s.passwords.outdated(row.PasswordHash) {
		s.rehash(ctx, row, password)
	}
	return &authv1.LogInResponse{UserId: row.ID.String(), Tokens: tokens}, nil
}

// rehash brings a stored password to the present cost. The log in has succeeded already: a failure waits
// for the next one.
func (s *Service) rehash(ctx context.Context, row db.AccountCredentialsRow, password string) {
	hash, err := s.passwords.hash(ctx, password)
	if err == nil {
		err = db.New(s.pool).AccountRehash(ctx, db.AccountRehashParams{ID: row.ID, OldHash: row.PasswordHash, NewHash: hash})
	}
	if err != nil {
		s.log.WarnContext(ctx, "a password keeps its old cost", "account_id", row.ID, "error", err)
	}
}

// Refresh implements the RPC.
func (s *Service) Refresh(ctx context.Context, req *authv1.RefreshRequest) (*authv1.RefreshResponse, error) {
	presented, ok := parseRefreshToken(req.GetRefreshToken())
	if !ok {
		return nil, errRefreshInvalid
	}
	var (
		outcome refreshOutcome
		session session
	)
	// Reuse ends the session, so it commits like success does; its error is made after the commit.
	err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) (err error) {
		outcome, session, err = s.rotate(ctx, tx, presented, emit)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case outcome == refreshInvalid:
		return nil, errRefreshInvalid
	case outcome == refreshReused:
		s.log.WarnContext(ctx, "a spent refresh token was used, its session is ended", "session_id", presented.sessionID)
		return nil, errRefreshReused
	}
	// Signing may fail after the rotation: the client then repeats with the same token, within its grace.
	tokens, err := s.tokens(ctx, session)
	if err != nil {
		return nil, err
	}
	return &authv1.RefreshResponse{Tokens: tokens}, nil
}

// rotate takes the session's lock, decides what the token means, and does it.
func (s *Service) rotate(ctx context.Context, tx pgx.Tx, presented refreshToken, emit emitFunc) (refreshOutcome, session, error) {
	queries, none := db.New(tx), session{}
	row, err := queries.SessionForRefresh(ctx, presented.sessionID)
	if errors.Is(err, pgx.ErrNoRows) {
		return refreshInvalid, none, nil
	}
	if err != nil {
		return refreshInvalid, none, fmt.Errorf("select session: %w", err)
	}
	// Read after the lock: whoever waited for it must not judge the grace by an older instant.
	now := s.clock.Now()
	outcome := s.refresh.present(presented, sessionState{
		tokenHash: row.TokenHash, rotatedAt: row.RotatedAt, expiresAt: row.ExpiresAt,
		idleExpiresAt: row.IdleExpiresAt, revoked: row.RevokedAt != nil,
	}, now)
	switch outcome {
	case refreshInvalid:
		return outcome, none, nil
	case refreshReused:
		return outcome, none, s.revoke(ctx, tx, presented.sessionID, emit)
	}
	role, err := identity.ParseRole(row.Role)
	if err != nil {
		return outcome, none, fmt.Errorf("role of account %s: %w", row.AccountID, err)
	}
	next := session{
		id: presented.sessionID, accountID: row.AccountID, role: role, refresh: s.refresh.next(presented),
		issuedAt: now, expiresAt: row.ExpiresAt, idleExpiresAt: row.IdleExpiresAt,
	}
	if outcome == refreshRepeats {
		return outcome, next, nil
	}
	hash := next.refresh.hash()
	next.idleExpiresAt = s.policy.idleExpiry(now, row.ExpiresAt)
	err = queries.SessionRotate(ctx, db.SessionRotateParams{
		ID: next.id, TokenHash: hash[:], RotatedAt: now, IdleExpiresAt: next.idleExpiresAt,
	})
	if err != nil {
		return outcome, none, fmt.Errorf("rotate session: %w", err)
	}
	return outcome, next, nil
}

// LogOut implements the RPC.
func (s *Service) LogOut(ctx context.Context, _ *authv1.LogOutRequest) (*authv1.LogOutResponse, error) {
	caller := identity.From(ctx)
	err := s.outbox.Tx(ctx, func(tx pgx.Tx, emit emitFunc) error {
		return s.revoke(ctx, tx, caller.SessionID, emit)
	})
	if err != nil {
		return nil, err
	}
	return &authv1.LogOutResponse{}, nil
}

// revoke ends a session. One that has ended already, or is not there, stays as it is and no event is emitted.
func (s *Service) revoke(ctx context.Context, tx pgx.Tx, sessionID uuid.UUID, emit emitFunc) error {
	now := s.clock.Now()
	accountID, err := db.New(tx).SessionRevoke(ctx, db.SessionRevokeParams{ID: sessionID, RevokedAt: now})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("revoke session: %w", err)
	}
	return emit(sessionRevoked(sessionID, accountID, now))
}

const (
	// sessionKeep is how long an ended session stays, for whoever looks into what happened.
	sessionKeep = 24 * time.Hour
	// pruneBatch bounds the locks and the WAL of one statement.
	pruneBatch = 1000
)

// pruneSessions deletes sessions that ended more than sessionKeep ago. Their tokens are invalid either way.
func (s *Service) pruneSessions(ctx context.Context) error {
	before := s.clock.Now().Add(-sessionKeep)
	for {
		pruned, err := db.New(s.pool).SessionPrune(ctx, db.SessionPruneParams{
			ExpiredBefore: before, RevokedBefore: before, Batch: pruneBatch,
		})
		if err != nil {
			return fmt.Errorf("prune sessions: %w", err)
		}
		if pruned < pruneBatch {
			return nil
		}
	}
}

// accountSubject counts by the name that was tried, not by the account behind it: if the user name and
// the address of one account shared a count, the limit would tell that they belong together. Names are
// hashed, so Redis holds no addresses.
func accountSubject(login string, limit int) subject {
	sum := sha256.Sum256([]byte(login))
	return subject{key: "account:" + hex.EncodeToString(sum[:16]), limit: limit, forgiven: true}
}

// addressSubject is empty when the caller's address is unknown.
func (s *Service) addressSubject(ctx context.Context, what string, limit int) []subject {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return nil
	}
	addr := clientAddress(info.Peer().Addr, info.RequestHeader().Values("X-Forwarded-For"), s.gateways)
	if addr == (netip.Addr{}) {
		return nil
	}
	return []subject{{key: what + ":" + addr.String(), limit: limit}}
}
