package rpc_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// outcome is one row of the table of errors: it must hold over every transport.
type outcome struct {
	name   string
	call   func(t *testing.T, w *world, tr transport) error
	code   connect.Code // 0: no error
	reason errorv1.Reason
	logged int // lines at error level
}

func getUser(ctx context.Context, tr transport, id string) error {
	_, err := userv1connect.NewUserServiceClient(tr.http, tr.url, tr.opts...).GetUser(ctx, &userv1.GetUserRequest{UserId: id})
	return err
}

// asUser calls GetUser with a good token.
func asUser(id string) func(*testing.T, *world, transport) error {
	return func(t *testing.T, w *world, tr transport) error {
		raw, _ := w.access(t, identity.RoleUser)
		return getUser(authorized(t.Context(), raw), tr, id)
	}
}

// internal calls BatchGetAccounts with what header gives.
func internal(ctx context.Context, tr transport) error {
	_, err := authv1connect.NewAuthServiceClient(tr.http, tr.url, tr.opts...).
		BatchGetAccounts(ctx, &authv1.BatchGetAccountsRequest{Ids: []string{uuid.NewString()}})
	return err
}

func logIn(ctx context.Context, tr transport) error {
	_, err := authv1connect.NewAuthServiceClient(tr.http, tr.url, tr.opts...).
		LogIn(ctx, &authv1.LogInRequest{Login: "anna", Password: "x"})
	return err
}

func handlerOutcomes() []outcome {
	return []outcome{
		{name: "ok", call: asUser("")},
		{name: "validation", call: asUser("no uuid"), code: connect.CodeInvalidArgument, reason: errorv1.Reason_REASON_INVALID_ARGUMENT},
		{name: "not found", call: asUser(idMissing), code: connect.CodeNotFound, reason: errorv1.Reason_REASON_USER_NOT_FOUND},
		{name: "rate limited", call: asUser(idLimited), code: connect.CodeResourceExhausted, reason: errorv1.Reason_REASON_RATE_LIMITED},
		{name: "panic", call: asUser(idPanic), code: connect.CodeInternal, reason: errorv1.Reason_REASON_INTERNAL, logged: 1},
		{name: "uncoded", call: asUser(idUncoded), code: connect.CodeInternal, reason: errorv1.Reason_REASON_INTERNAL, logged: 1},
		{name: "dependency away", call: asUser(idOutage), code: connect.CodeUnavailable, reason: errorv1.Reason_REASON_UNAVAILABLE},
		{name: "a value that no column takes", call: asUser(idUnstorable), code: connect.CodeInvalidArgument, reason: errorv1.Reason_REASON_INVALID_ARGUMENT},
		{name: "callee away", call: asUser(idCallee), code: connect.CodeUnavailable, reason: errorv1.Reason_REASON_UNAVAILABLE},
		{name: "callee refused us", call: asUser(idForeign), code: connect.CodeInternal, reason: errorv1.Reason_REASON_INTERNAL, logged: 1},
		{name: "callee's verdict", call: asUser(idPassesOn), code: connect.CodePermissionDenied, reason: errorv1.Reason_REASON_SEND_NOT_ALLOWED},
		{
			name: "deadline", code: connect.CodeDeadlineExceeded, reason: errorv1.Reason_REASON_DEADLINE_EXCEEDED,
			call: func(t *testing.T, w *world, tr transport) error {
				raw, _ := w.access(t, identity.RoleUser)
				ctx, cancel := context.WithTimeout(authorized(t.Context(), raw), 50*time.Millisecond)
				defer cancel()
				return getUser(ctx, tr, idHang)
			},
		},
		{
			name: "cancel", code: connect.CodeCanceled, reason: errorv1.Reason_REASON_CANCELED,
			call: func(t *testing.T, w *world, tr transport) error {
				raw, _ := w.access(t, identity.RoleUser)
				ctx, cancel := context.WithCancel(authorized(t.Context(), raw))
				defer cancel()
				select { // a leftover of the deadline case
				case <-w.people.hanging:
				default:
				}
				go func() { <-w.people.hanging; cancel() }()
				return getUser(ctx, tr, idHang)
			},
		},
	}
}

func tokenOutcomes() []outcome {
	return []outcome{
		{
			name: "no token", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_TOKEN_MISSING,
			call: func(t *testing.T, _ *world, tr transport) error { return getUser(t.Context(), tr, "") },
		},
		{
			name: "garbage token", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_TOKEN_INVALID,
			call: func(t *testing.T, _ *world, tr transport) error {
				return getUser(authorized(t.Context(), "abc.def.ghi"), tr, "")
			},
		},
		{
			name: "garbage token to an open method", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_TOKEN_INVALID,
			call: func(t *testing.T, _ *world, tr transport) error { return logIn(authorized(t.Context(), "abc"), tr) },
		},
		{
			name: "open method without token",
			call: func(t *testing.T, _ *world, tr transport) error { return logIn(t.Context(), tr) },
		},
		{
			name: "expired", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_TOKEN_EXPIRED,
			call: func(t *testing.T, w *world, tr transport) error {
				now := w.clock.Now()
				raw, err := token.SignAccess(w.key, token.Claims{
					UserID: uuid.New(), SessionID: uuid.New(), Role: identity.RoleUser,
					IssuedAt: now.Add(-life), ExpiresAt: now,
				}, issuer, audience)
				require.NoError(t, err)
				return getUser(authorized(t.Context(), raw), tr, "")
			},
		},
		{
			name: "revoked", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_SESSION_REVOKED,
			call: func(t *testing.T, w *world, tr transport) error {
				raw, claims := w.access(t, identity.RoleUser)
				require.NoError(t, getUser(authorized(t.Context(), raw), tr, ""))
				w.revoked.Add(claims.SessionID, w.clock.Now())
				return getUser(authorized(t.Context(), raw), tr, "")
			},
		},
		{
			name: "internal without token", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_TOKEN_MISSING,
			call: func(t *testing.T, _ *world, tr transport) error { return internal(t.Context(), tr) },
		},
		{
			name: "internal by an admin", code: connect.CodePermissionDenied, reason: errorv1.Reason_REASON_ACCESS_DENIED,
			call: func(t *testing.T, w *world, tr transport) error {
				raw, _ := w.access(t, identity.RoleAdmin)
				return internal(authorized(t.Context(), raw), tr)
			},
		},
		{
			name: "internal by an unlisted service", code: connect.CodePermissionDenied, reason: errorv1.Reason_REASON_ACCESS_DENIED,
			call: asService("stranger", "auth", internal),
		},
		{
			name: "internal by a token for another service", code: connect.CodeUnauthenticated, reason: errorv1.Reason_REASON_TOKEN_INVALID,
			call: asService("user", "messaging", internal),
		},
		{name: "internal by a listed service", call: asService("user", "auth", internal)},
		{
			name: "person's method by a service", code: connect.CodePermissionDenied, reason: errorv1.Reason_REASON_ACCESS_DENIED,
			call: asService("user", "auth", func(ctx context.Context, tr transport) error { return getUser(ctx, tr, "") }),
		},
	}
}

// asService calls as a service whose token is for a callee.
func asService(name, callee string, call func(context.Context, transport) error) func(*testing.T, *world, transport) error {
	return func(t *testing.T, w *world, tr transport) error {
		tr.opts = append(append([]connect.ClientOption{}, tr.opts...), rpc.ClientOptions(w.signers[name], callee)...)
		return call(t.Context(), tr)
	}
}

func TestEveryTransportGivesTheSameCodeAndReason(t *testing.T) {
	t.Parallel()
	overEveryTransport(t, func(t *testing.T, w *world, tr transport) {
		for _, o := range append(handlerOutcomes(), tokenOutcomes()...) {
			err := o.call(t, w, tr)
			lines := w.logs.take()
			require.Len(t, lines, o.logged, "%s: %v", o.name, lines)
			if o.code == 0 {
				require.NoError(t, err, o.name)
				continue
			}
			require.Error(t, err, o.name)
			require.Equal(t, o.code.String(), connect.CodeOf(err).String(), "%s: %v", o.name, err)
			require.Equal(t, o.reason.String(), rpc.ReasonOf(err).String(), "%s: %v", o.name, err)
			for _, secret := range []string{"secret", "10.1.2.3", "stinks", "127.0.0.1:1"} {
				require.NotContains(t, err.Error(), secret, o.name)
			}
		}
	})
}

func TestRetryAfterSurvivesTheWire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tr := range w.transports(t) {
		err := asUser(idLimited)(t, w, tr)
		require.Equal(t, 7*time.Second, rpc.InfoOf(err).GetRetryAfter().AsDuration(), tr.name)
	}
}

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.Error(t, asUser(idPanic)(t, w, w.transports(t)[0]))
	lines := w.logs.take()
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], "GetUser")
	require.Contains(t, lines[0], "integer divide by zero")
	require.Contains(t, lines[0], "rpc_test.go")
	require.NoError(t, asUser("")(t, w, w.transports(t)[0]), "the process lives")
}

func TestAChangedErrorLeavesTheSentinelAlone(t *testing.T) {
	t.Parallel()
	sentinel := rpc.Error(connect.CodeAborted, errorv1.Reason_REASON_VERSION_CONFLICT, "somebody was faster")
	changed := rpc.WithMetadata(rpc.WithRetryAfter(sentinel, time.Second), "version", "7")
	require.Nil(t, rpc.InfoOf(sentinel).GetRetryAfter())
	require.Equal(t, time.Second, rpc.InfoOf(changed).GetRetryAfter().AsDuration())
	require.Equal(t, "7", rpc.InfoOf(changed).GetMetadata()["version"])
	require.Equal(t, errorv1.Reason_REASON_VERSION_CONFLICT, rpc.ReasonOf(changed))
	require.Equal(t, sentinel.Message(), changed.Message())
	require.Len(t, changed.Details(), 1)
	require.Equal(t, errorv1.Reason_REASON_UNSPECIFIED, rpc.ReasonOf(nil))
	require.Nil(t, rpc.InfoOf(nil))
}
