package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
	// suspendedUntil is when a suspension ends that stands against a refresh; nil: for good.
	suspendedUntil *time.Time
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

func (e session) row(device string, from origin) db.SessionCreateParams {
	hash := e.refresh.hash()
	return db.SessionCreateParams{
		ID: e.id, AccountID: e.accountID, DeviceName: device, TokenHash: hash[:],
		CreatedAt: e.issuedAt, ExpiresAt: e.expiresAt, IdleExpiresAt: e.idleExpiresAt,
		Address: from.addressText(), UserAgent: from.userAgent,
	}
}

// tokens signs an access token and writes down the pair for the client.
func (s *Service) tokens(ctx context.Context, e session) (*authv1.Tokens, error) {
	key, err := s.keys.signing(ctx)
	if err != nil {
		return nil, err
	}
	return s.sign(key, e)
}

func (s *Service) sign(key token.SigningKey, e session) (*authv1.Tokens, error) {
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

// Refresh implements the RPC.
func (s *Service) Refresh(ctx context.Context, req *authv1.RefreshRequest) (*authv1.RefreshResponse, error) {
	presented, ok := parseRefreshToken(req.GetRefreshToken())
	if !ok {
		return nil, errRefreshInvalid
	}
	if s.refresh.issued(presented) {
		// A client that refreshes without end writes a row each time.
		limit := subject{key: "refresh:" + presented.sessionID.String(), limit: s.refreshLimit}
		if err := s.attempts.count(ctx, limit); err != nil {
			return nil, err
		}
		return s.refreshWith(ctx, presented)
	}
	// Not of our present key: an invention, which counts, or from before the key was exchanged.
	var res *authv1.RefreshResponse
	err := s.guess(ctx, s.addressSubject(ctx, "refresh", s.refreshLimit), func() (err error) {
		res, err = s.refreshWith(ctx, presented)
		return err
	})
	return res, err
}

// refreshWith does what a token of the right form asks for.
func (s *Service) refreshWith(ctx context.Context, presented refreshToken) (*authv1.RefreshResponse, error) {
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
	case outcome == refreshSuspended:
		return nil, errSuspended(session.suspendedUntil)
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
	if suspended(now, row.SuspendedAt, row.SuspendedUntil) && presented.isNewest(row.TokenHash) {
		// Who holds the session's own token is told why it has ended.
		return refreshSuspended, session{suspendedUntil: row.SuspendedUntil}, nil
	}
	switch outcome {
	case refreshInvalid:
		return outcome, none, nil
	case refreshReused:
		if _, err := s.revoke(ctx, queries, presented.sessionID, emit); err != nil {
			return outcome, none, err
		}
		return outcome, none, s.audit(ctx, queries, auditEntry{
			action: auditRefreshReused, account: row.AccountID, session: presented.sessionID,
		}, errorv1.Reason_REASON_REFRESH_TOKEN_REUSED)
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
	hash, from := next.refresh.hash(), s.originOf(ctx)
	next.idleExpiresAt = s.policy.idleExpiry(now, row.ExpiresAt)
	err = queries.SessionRotate(ctx, db.SessionRotateParams{
		ID: next.id, TokenHash: hash[:], RotatedAt: now, IdleExpiresAt: next.idleExpiresAt,
		Address: from.addressText(), UserAgent: from.userAgent,
	})
	if err != nil {
		return outcome, none, fmt.Errorf("rotate session: %w", err)
	}
	return outcome, next, nil
}

// LogOut implements the RPC.
func (s *Service) LogOut(ctx context.Context, _ *authv1.LogOutRequest) (*authv1.LogOutResponse, error) {
	caller := identity.From(ctx)
	entry := auditEntry{action: auditLogOut, account: caller.UserID, session: caller.SessionID, always: true}
	err := s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) error {
		ended, err := s.revoke(ctx, queries, caller.SessionID, emit)
		entry.nothing = !ended
		return err
	})
	if err != nil {
		return nil, err
	}
	return &authv1.LogOutResponse{}, nil
}

// revoke ends a session. One that has ended already, or is not there, stays as it is and no event is emitted.
func (s *Service) revoke(ctx context.Context, queries *db.Queries, sessionID uuid.UUID, emit emitFunc) (ended bool, err error) {
	now := s.clock.Now()
	accountID, err := queries.SessionRevoke(ctx, db.SessionRevokeParams{ID: sessionID, RevokedAt: now})
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("revoke session: %w", err)
	}
	return true, emit(sessionRevoked(sessionID, accountID, now))
}

// revokeAll ends the sessions of an account, except one or, with the zero id, none, and what they had begun: log-ins
// that wait for a second factor, codes for changes. The caller holds the account's
// lock, which a log-in shares: no session is begun meanwhile.
func (s *Service) revokeAll(ctx context.Context, queries *db.Queries, accountID, except uuid.UUID, emit emitFunc) (int32, error) {
	now := s.clock.Now()
	rows, err := queries.SessionRevokeAll(ctx, db.SessionRevokeAllParams{RevokedAt: now, AccountID: accountID, ExceptID: except})
	if err != nil {
		return 0, fmt.Errorf("revoke sessions: %w", err)
	}
	var ids []uuid.UUID
	for _, row := range rows {
		if now.Before(row.IdleExpiresAt) { // of the others everybody knows
			ids = append(ids, row.ID)
		}
	}
	if err := queries.CodesDropOfSessions(ctx, db.CodesDropOfSessionsParams{AccountID: accountID, Kept: ownPurposes}); err != nil {
		return 0, fmt.Errorf("drop codes: %w", err)
	}
	if err := queries.ChallengesDrop(ctx, accountID); err != nil {
		return 0, fmt.Errorf("drop challenges: %w", err)
	}
	return int32(len(ids)), emitRevoked(ids, accountID, now, emit)
}

func emitRevoked(ids []uuid.UUID, accountID uuid.UUID, at time.Time, emit emitFunc) error {
	for _, id := range ids {
		if err := emit(sessionRevoked(id, accountID, at)); err != nil {
			return err
		}
	}
	return nil
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
	return prune(func() (int64, error) {
		return db.New(s.pool).SessionPrune(ctx, db.SessionPruneParams{ExpiredBefore: before, RevokedBefore: before, Batch: pruneBatch})
	})
}

// accountSubject counts by the name that was tried, not by the account behind it: if the user name and
// the address of one account shared a count, the limit would tell that they belong together. Names are
// hashed, so Redis holds no addresses.
func accountSubject(login string, limit int) subject {
	return hashedSubject("account:", login, limit)
}

// hashedSubject counts by a name of a person's.
func hashedSubject(what, name string, limit int) subject {
	sum := sha256.Sum256([]byte(name))
	return subject{key: what + hex.EncodeToString(sum[:16]), limit: limit, forgiven: true}
}

// addressSubject is empty when the caller's address is unknown.
func (s *Service) addressSubject(ctx context.Context, what string, limit int) []subject {
	from := s.originOf(ctx)
	if !from.address.IsValid() {
		return nil
	}
	return []subject{{key: what + ":" + from.address.String(), limit: limit}}
}
