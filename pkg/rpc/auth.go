package rpc

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/token"
	accessv1 "github.com/parleychat/parley/proto/gen/parley/access/v1"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// Authenticate says who sends a request with these headers. No Authorization
// header: an anonymous caller. A token that is present must be valid, whatever
// the method asks for. Either verifier may be nil: its kind of token is refused.
//
// Reasons: TOKEN_INVALID, TOKEN_EXPIRED, SESSION_REVOKED (unauthenticated),
// UNAVAILABLE if the keys cannot be had.
func Authenticate(
	ctx context.Context, users *token.Verifier, services *token.ServiceVerifier, header http.Header,
) (identity.Caller, error) {
	values := header["Authorization"]
	if len(values) == 0 {
		return identity.Caller{}, nil
	}
	raw, ok := bearer(values)
	if !ok {
		return identity.Caller{}, tokenError(token.ErrInvalid)
	}
	if services != nil && token.TypeOf(raw) == token.TypeService {
		name, err := services.Verify(raw)
		if err != nil {
			return identity.Caller{}, tokenError(err)
		}
		return identity.Caller{Kind: identity.Service, Service: name}, nil
	}
	if users == nil {
		return identity.Caller{}, tokenError(token.ErrInvalid)
	}
	claims, err := users.Verify(ctx, raw)
	if err != nil {
		return identity.Caller{}, tokenError(err)
	}
	return claims.Caller(), nil
}

func bearer(values []string) (string, bool) {
	const scheme = "Bearer "
	if len(values) != 1 || len(values[0]) <= len(scheme) || !strings.EqualFold(values[0][:len(scheme)], scheme) {
		return "", false
	}
	return strings.TrimSpace(values[0][len(scheme):]), true
}

// TokenError turns an error of package token into one for the caller; for those
// who verify a token that did not come in a header.
func TokenError(err error) *connect.Error { return tokenError(err) }

func tokenError(err error) *connect.Error {
	switch {
	case errors.Is(err, token.ErrExpired):
		return Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_EXPIRED, "the token has expired")
	case errors.Is(err, token.ErrRevoked):
		return Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_SESSION_REVOKED, "the session was ended")
	case errors.Is(err, token.ErrUnavailable):
		return WithRetryAfter(Error(connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE,
			"tokens cannot be checked at the moment"), time.Second)
	default:
		return Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_INVALID, "the token is not valid")
	}
}

// Authorize says whether a caller may call a method, nil if so.
//
// Reasons: TOKEN_MISSING (unauthenticated), ACCESS_DENIED (permission_denied).
func Authorize(m Method, c identity.Caller) error {
	if m.Access == accessv1.Access_ACCESS_ANONYMOUS {
		return nil
	}
	if c.Kind == identity.Anonymous {
		return Error(connect.CodeUnauthenticated, errorv1.Reason_REASON_TOKEN_MISSING, "a token is needed")
	}
	allowed := false
	switch m.Access {
	case accessv1.Access_ACCESS_USER:
		allowed = c.HasRole(identity.RoleUser)
	case accessv1.Access_ACCESS_MODERATOR:
		allowed = c.HasRole(identity.RoleModerator)
	case accessv1.Access_ACCESS_ADMIN:
		allowed = c.HasRole(identity.RoleAdmin)
	case accessv1.Access_ACCESS_INTERNAL:
		allowed = c.Kind == identity.Service && slices.Contains(m.InternalCallers, c.Service)
	}
	if !allowed {
		return Error(connect.CodePermissionDenied, errorv1.Reason_REASON_ACCESS_DENIED, "this caller may not call this method")
	}
	return nil
}

// gate runs on the headers alone, before a byte of the message is read: who may
// not call cannot make us decode anything.
func (s *Server) gate(ctx context.Context, spec connect.Spec, _ connect.Peer, header http.Header) (context.Context, error) {
	method, ok := Methods()[spec.Procedure]
	if !ok {
		return nil, s.rejected(ctx, spec, ErrMethodUnknown())
	}
	caller, err := Authenticate(ctx, s.cfg.Users, s.cfg.Services, header)
	if err == nil {
		err = Authorize(method, caller)
	}
	if err != nil {
		return nil, s.rejected(ctx, spec, err)
	}
	return identity.With(ctx, caller), nil
}

// ErrMethodUnknown is the answer for a procedure that is not there, and for one that
// the caller shall not learn of: the two must not differ.
func ErrMethodUnknown() *connect.Error {
	return Error(connect.CodeUnimplemented, errorv1.Reason_REASON_METHOD_UNKNOWN, "no such method")
}
