package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	accessv1 "github.com/parleychat/parley/proto/gen/parley/access/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func TestMethodsComeFromTheProtos(t *testing.T) {
	t.Parallel()
	table := rpc.Methods()
	m := table[authv1connect.AuthServiceBatchGetAccountsProcedure]
	require.Equal(t, accessv1.Access_ACCESS_INTERNAL, m.Access)
	require.Equal(t, []string{"user"}, m.InternalCallers)
	require.Equal(t, "auth", m.Service)
	require.False(t, m.Public())
	m = table[userv1connect.UserServiceGetUserProcedure]
	require.Equal(t, accessv1.Access_ACCESS_USER, m.Access)
	require.Equal(t, connect.StreamTypeUnary, m.Streaming)
	require.Equal(t, "parley.user.v1.GetUserRequest", string(m.Input.FullName()))
	require.True(t, m.Public())
	for procedure, m := range table {
		require.NotEqual(t, accessv1.Access_ACCESS_UNSPECIFIED, m.Access, procedure)
	}
}

func TestHandleRefusesWhatHasNoAccessOption(t *testing.T) {
	t.Parallel()
	s := rpc.NewServer(rpc.Config{Service: "x"})
	require.ErrorContains(t, s.Handle("/parley.unheard.v1.Service/", http.NotFoundHandler()), "no such service")
	require.Error(t, s.Handle("/parley.user.v1.User/", http.NotFoundHandler()), "a message is no service")
	require.ErrorContains(t, s.Handle("/parley.user.v1.UserService/Nonsense", http.NotFoundHandler()), "no such method")
	require.NoError(t, s.Handle("/parley.user.v1.UserService/", http.NotFoundHandler()))
	require.ErrorContains(t, s.Handle("/parley.user.v1.UserService/", http.NotFoundHandler()), "already")
	require.NoError(t, s.HandleHTTP("GET /x", http.NotFoundHandler()))
	require.Error(t, s.HandleHTTP("GET /x", http.NotFoundHandler()), "taken")
}

func TestAuthorizeKnowsTheRoles(t *testing.T) {
	t.Parallel()
	person := func(r identity.Role) identity.Caller { return identity.Caller{Kind: identity.User, Role: r} }
	service := identity.Caller{Kind: identity.Service, Service: "call"}
	for access, allowed := range map[accessv1.Access][]identity.Caller{
		accessv1.Access_ACCESS_USER:      {person(identity.RoleUser), person(identity.RoleModerator), person(identity.RoleAdmin)},
		accessv1.Access_ACCESS_MODERATOR: {person(identity.RoleModerator), person(identity.RoleAdmin)},
		accessv1.Access_ACCESS_ADMIN:     {person(identity.RoleAdmin)},
		accessv1.Access_ACCESS_INTERNAL:  {service},
		accessv1.Access_ACCESS_ANONYMOUS: {
			{}, person(identity.RoleUser), person(identity.RoleModerator), person(identity.RoleAdmin), service,
		},
		accessv1.Access_ACCESS_UNSPECIFIED: nil,
	} {
		all := []identity.Caller{
			{},
			person(identity.RoleUser), person(identity.RoleModerator), person(identity.RoleAdmin),
			service,
			{Kind: identity.Service, Service: "unlisted"},
		}
		for _, c := range all {
			err := rpc.Authorize(rpc.Method{Access: access, InternalCallers: []string{"call"}}, c)
			want := access == accessv1.Access_ACCESS_ANONYMOUS
			for _, a := range allowed {
				want = want || a == c
			}
			require.Equal(t, want, err == nil, "%v %v", access, c)
		}
	}
}

// post sends a unary Connect call by hand.
func post(t *testing.T, w *world, tr transport, procedure, raw, kind string, body []byte) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, tr.url+procedure, bytes.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", kind)
	if raw != "" {
		r.Header.Set("Authorization", "Bearer "+raw)
	}
	res, err := tr.http.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// Connect makes some errors before any interceptor runs; they have reasons too.
func TestErrorsBeforeTheChainHaveReasons(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *rpc.Config) { c.MaxRequestBytes = 1000 })
	raw, _ := w.access(t, identity.RoleUser)
	info := "parley.error.v1.ErrorInfo"
	for _, tr := range w.transports(t) {
		if len(tr.opts) > 0 {
			continue // the request is made by hand
		}
		for name, c := range map[string]struct {
			procedure, kind string
			body            []byte
			code            string
			reason          errorv1.Reason
		}{
			"no JSON":   {userv1connect.UserServiceGetUserProcedure, "application/json", []byte("{"), "invalid_argument", errorv1.Reason_REASON_INVALID_ARGUMENT},
			"no proto":  {userv1connect.UserServiceGetUserProcedure, "application/proto", []byte{0xff}, "invalid_argument", errorv1.Reason_REASON_INVALID_ARGUMENT},
			"too large": {userv1connect.UserServiceGetUserProcedure, "application/proto", make([]byte, 2000), "resource_exhausted", errorv1.Reason_REASON_TOO_LARGE},
			"no method": {
				"/parley.user.v1.UserService/Nonsense", "application/json", []byte("{}"), "unimplemented", errorv1.Reason_REASON_METHOD_UNKNOWN,
			},
			"no service": {
				"/parley.unheard.v1.Service/Nonsense", "application/json", []byte("{}"), "unimplemented", errorv1.Reason_REASON_METHOD_UNKNOWN,
			},
		} {
			t.Run(tr.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				res := post(t, w, tr, c.procedure, raw, c.kind, c.body)
				var wire struct {
					Code    string `json:"code"`
					Details []struct {
						Type string `json:"type"`
					} `json:"details"`
				}
				require.NoError(t, json.NewDecoder(res.Body).Decode(&wire))
				require.Equal(t, c.code, wire.Code)
				require.NotEmpty(t, wire.Details)
				require.Equal(t, info, wire.Details[len(wire.Details)-1].Type)
				codec := strings.TrimPrefix(c.kind, "application/")
				_, err := rpc.NewRawClient(rpc.Backend{HTTP: tr.http, URL: tr.url}, c.procedure, codec).
					Call(t.Context(), http.Header{"Authorization": {"Bearer " + raw}}, c.body)
				require.Equal(t, c.reason.String(), rpc.ReasonOf(err).String())
			})
		}
	}
}

func TestAStrangerCannotMakeUsDecode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	res := post(t, w, w.transports(t)[0], userv1connect.UserServiceGetUserProcedure, "", "application/proto", []byte{0xff})
	require.Equal(t, http.StatusUnauthorized, res.StatusCode, "the token is asked for before the message is read")
}

func TestDeadlineIsSetAndCapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *rpc.Config) { c.DefaultTimeout, c.MaxTimeout = 30*time.Millisecond, 60*time.Millisecond })
	raw, _ := w.access(t, identity.RoleUser)
	for _, tr := range w.transports(t) {
		for name, timeout := range map[string]time.Duration{"none": 0, "too long": time.Hour} {
			ctx, cancel := context.WithCancel(authorized(t.Context(), raw))
			if timeout > 0 {
				cancel()
				ctx, cancel = context.WithTimeout(authorized(t.Context(), raw), timeout)
			}
			err := getUser(ctx, tr, idHang)
			cancel()
			require.Equal(t, errorv1.Reason_REASON_DEADLINE_EXCEEDED, rpc.ReasonOf(err), "%s/%s: %v", tr.name, name, err)
		}
	}
}

func TestPlainHTTPBesideRPC(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, w.server.HandleHTTP("GET /.well-known/keys", http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(out, "keys for "+identity.From(r.Context()).Kind.String())
	})))
	for _, tr := range w.transports(t)[:7] {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tr.url+"/.well-known/keys", nil)
		require.NoError(t, err)
		res, err := tr.http.Do(r)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, "keys for anonymous", string(body), tr.name)
	}
}

func TestInProcessHidesTheCallersContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := identity.With(t.Context(), identity.Caller{Kind: identity.User, Role: identity.RoleAdmin})
	for _, tr := range w.transports(t) {
		require.Equal(t, errorv1.Reason_REASON_TOKEN_MISSING, rpc.ReasonOf(getUser(admin, tr, "")), tr.name)
	}
}

func TestServeDrains(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, _ := w.access(t, identity.RoleUser)
	ctx, cancel := context.WithCancel(authorized(t.Context(), raw))
	defer cancel()
	running := make(chan error, 1)
	tr := w.transports(t)[0]
	go func() { running <- getUser(ctx, tr, idHang) }()
	<-w.people.hanging
	w.stop()
	require.Eventually(t, func() bool {
		return getUser(authorized(t.Context(), raw), w.transports(t)[2], "") != nil
	}, 5*time.Second, 10*time.Millisecond, "no new connection is taken")
	select {
	case err := <-running:
		t.Fatalf("the running call was cut off: %v", err)
	case err := <-w.finished:
		t.Fatalf("the server ended before its last call: %v", err)
	default:
	}
	cancel() // the call ends, and with it the server
	require.Equal(t, errorv1.Reason_REASON_CANCELED, rpc.ReasonOf(<-running))
	require.NoError(t, <-w.finished)
}

func TestServeCancelsWhatOutlastsTheGrace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *rpc.Config) { c.DrainGrace = 50 * time.Millisecond })
	raw, _ := w.access(t, identity.RoleUser)
	tr := w.transports(t)[0]
	running := make(chan error, 1)
	go func() { running <- getUser(authorized(t.Context(), raw), tr, idHang) }()
	<-w.people.hanging
	w.stop()
	require.Equal(t, errorv1.Reason_REASON_OVERLOADED, rpc.ReasonOf(<-running))
	require.NoError(t, <-w.finished)
}

func TestDrainForCallersInTheSameProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, _ := w.access(t, identity.RoleUser)
	inside := w.transports(t)[6]
	ctx, cancel := context.WithCancel(authorized(t.Context(), raw))
	defer cancel()
	running := make(chan error, 1)
	go func() { running <- getUser(ctx, inside, idHang) }()
	<-w.people.hanging

	soon, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	require.ErrorIs(t, w.server.Drain(soon), context.DeadlineExceeded, "a call is running")
	err := getUser(authorized(t.Context(), raw), inside, "")
	require.Equal(t, errorv1.Reason_REASON_OVERLOADED, rpc.ReasonOf(err))
	require.NotNil(t, rpc.InfoOf(err).GetRetryAfter())
	cancel()
	require.Error(t, <-running)
	require.NoError(t, w.server.Drain(t.Context()))
}

func TestRawClientPassesBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, claims := w.access(t, identity.RoleUser)
	header := http.Header{"Authorization": {"Bearer " + raw}}
	for _, tr := range w.transports(t) {
		if len(tr.opts) > 0 {
			continue
		}
		backend := rpc.Backend{HTTP: tr.http, URL: tr.url}
		out, err := rpc.NewRawClient(backend, userv1connect.UserServiceGetUserProcedure, "json").Call(t.Context(), header, []byte(`{}`))
		require.NoError(t, err, tr.name)
		require.Contains(t, string(out), claims.UserID.String())
		out, err = rpc.NewRawClient(backend, userv1connect.UserServiceGetUserProcedure, "proto").Call(t.Context(), header, nil)
		require.NoError(t, err, tr.name)
		require.Contains(t, string(out), claims.UserID.String())

		_, err = rpc.NewRawClient(backend, userv1connect.UserServiceGetUserProcedure, "json").
			Call(t.Context(), header, []byte(`{"userId":"`+idLimited+`"}`))
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.Equal(t, 7*time.Second, rpc.InfoOf(err).GetRetryAfter().AsDuration())
		require.Len(t, header, 1, "the caller's header is its own")

		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err = rpc.NewRawClient(backend, userv1connect.UserServiceGetUserProcedure, "json").
			Call(ctx, header, []byte(`{"userId":"`+idHang+`"}`))
		cancel()
		require.Equal(t, errorv1.Reason_REASON_DEADLINE_EXCEEDED, rpc.ReasonOf(err))
	}
	_, err := rpc.NewRawClient(w.dialer.Backend("auth"), "/x", "xml").Call(t.Context(), nil, nil)
	require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
	_, err = rpc.NewRawClient(w.dialer.Backend("unheard"), "/x", "json").Call(t.Context(), nil, nil)
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
}

func BenchmarkInProcessUnary(b *testing.B) {
	w := newWorld(b)
	benchmarkUnary(b, w, w.dialer.Backend("auth"))
}

func BenchmarkH2CUnary(b *testing.B) {
	w := newWorld(b)
	remote, err := rpc.Remote(map[string]string{"auth": w.url}, rpc.RemoteConfig{})
	require.NoError(b, err)
	b.Cleanup(remote.Close)
	benchmarkUnary(b, w, remote.Backend("auth"))
}

// BenchmarkInProcessRaw is the gateway's path: bytes in, bytes out.
func BenchmarkInProcessRaw(b *testing.B) {
	w := newWorld(b)
	raw, _ := w.access(b, identity.RoleUser)
	client := rpc.NewRawClient(w.dialer.Backend("auth"), userv1connect.UserServiceGetUserProcedure, "proto")
	header := http.Header{"Authorization": {"Bearer " + raw}}
	ctx, cancel := context.WithTimeout(b.Context(), 25*time.Second)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Call(ctx, header, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkUnary(b *testing.B, w *world, backend rpc.Backend) {
	b.Helper()
	raw, _ := w.access(b, identity.RoleUser)
	client := userv1connect.NewUserServiceClient(backend.HTTP, backend.URL)
	ctx := authorized(b.Context(), raw)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.GetUser(ctx, &userv1.GetUserRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
