package auth

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/page"
	"github.com/parleychat/parley/pkg/rpc"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	"github.com/parleychat/parley/services/auth/internal/db"
)

var errSessionNotFound = rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_SESSION_NOT_FOUND, "no such session")

const (
	sessionPage    = 50
	sessionMaxPage = 100
)

// sessionPosition is the last session of a page.
type sessionPosition struct {
	UsedAt time.Time
	ID     uuid.UUID
}

// ListSessions implements the RPC.
func (s *Service) ListSessions(ctx context.Context, req *authv1.ListSessionsRequest) (*authv1.ListSessionsResponse, error) {
	const kind = "auth.sessions"
	caller := identity.From(ctx)
	after, err := page.Decode[sessionPosition](kind, req.GetPageToken(), caller.UserID)
	if err != nil {
		return nil, err
	}
	limit := page.Size(req.GetPageSize(), sessionPage, sessionMaxPage)
	// One more than asked for tells whether there is another page.
	query := db.SessionListParams{AccountID: caller.UserID, Now: s.clock.Now(), PageSize: limit + 1}
	if after != nil {
		query.BeforeUsedAt, query.BeforeID = &after.UsedAt, &after.ID
	}
	rows, err := db.New(s.pool).SessionList(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("select sessions: %w", err)
	}
	res := &authv1.ListSessionsResponse{}
	if len(rows) > int(limit) {
		rows = rows[:limit]
		last := rows[limit-1]
		if res.NextPageToken, err = page.Encode(kind, sessionPosition{last.RotatedAt, last.ID}, caller.UserID); err != nil {
			return nil, err
		}
	}
	for _, row := range rows {
		res.Sessions = append(res.Sessions, sessionToProto(row, caller.SessionID))
	}
	return res, nil
}

// RenameSession implements the RPC.
func (s *Service) RenameSession(ctx context.Context, req *authv1.RenameSessionRequest) (*authv1.RenameSessionResponse, error) {
	err := s.onSession(ctx, &auditEntry{action: auditSessionRenamed}, req.GetSessionId(), func(queries *db.Queries, id uuid.UUID, _ emitFunc) error {
		renamed, err := queries.SessionRename(ctx, db.SessionRenameParams{
			DeviceName: req.GetDeviceName(), ID: id, AccountID: identity.From(ctx).UserID,
		})
		if err != nil {
			return fmt.Errorf("rename session: %w", err)
		}
		if renamed == 0 {
			return errSessionNotFound
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &authv1.RenameSessionResponse{}, nil
}

// RevokeSession implements the RPC.
func (s *Service) RevokeSession(ctx context.Context, req *authv1.RevokeSessionRequest) (*authv1.RevokeSessionResponse, error) {
	entry := auditEntry{action: auditLogOut, always: true}
	err := s.onSession(ctx, &entry, req.GetSessionId(), func(queries *db.Queries, id uuid.UUID, emit emitFunc) error {
		ended, err := s.revoke(ctx, queries, id, emit)
		entry.nothing = !ended
		return err
	})
	if err != nil {
		return nil, err
	}
	return &authv1.RevokeSessionResponse{}, nil
}

// onSession does something to a session of the caller's own, and records it.
func (s *Service) onSession(ctx context.Context, e *auditEntry, rawID string, do func(queries *db.Queries, id uuid.UUID, emit emitFunc) error) error {
	me := identity.From(ctx).UserID
	id, err := uuid.Parse(rawID)
	if err != nil {
		return fmt.Errorf("parse an id that was validated: %w", err)
	}
	e.account, e.session = me, id
	return s.act(ctx, e, func(queries *db.Queries, emit emitFunc) error {
		mine, err := queries.SessionBelongs(ctx, db.SessionBelongsParams{ID: id, AccountID: me})
		if err != nil {
			return fmt.Errorf("select session: %w", err)
		}
		if !mine {
			return errSessionNotFound
		}
		return do(queries, id, emit)
	})
}

// RevokeAllSessions implements the RPC.
func (s *Service) RevokeAllSessions(ctx context.Context, req *authv1.RevokeAllSessionsRequest) (*authv1.RevokeAllSessionsResponse, error) {
	caller := identity.From(ctx)
	except := uuid.Nil
	if req.GetKeepCurrent() {
		except = caller.SessionID
	}
	res := &authv1.RevokeAllSessionsResponse{}
	entry := auditEntry{action: auditLogOutAll, account: caller.UserID, always: true}
	err := s.act(ctx, &entry, func(queries *db.Queries, emit emitFunc) error {
		// A log-in that is under way commits before, and its session ends too, or begins after this.
		if _, err := lockAccount(ctx, queries, caller.UserID); err != nil {
			return err
		}
		var err error
		res.Revoked, err = s.revokeAll(ctx, queries, caller.UserID, except, emit)
		entry.nothing = res.GetRevoked() == 0
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func sessionToProto(row db.SessionListRow, current uuid.UUID) *authv1.Session {
	return &authv1.Session{
		Id: row.ID.String(), DeviceName: row.DeviceName, CreatedAt: timestamppb.New(row.CreatedAt),
		LastUsedAt: timestamppb.New(row.RotatedAt), Address: row.Address, UserAgent: row.UserAgent,
		ExpiresAt: timestamppb.New(row.IdleExpiresAt), Current: row.ID == current,
	}
}
