// Package authz_test holds who may call what: every method of every service, by
// everybody there is, at every door.
//
// The expectations are testdata/authz.txt and nothing else. A method without a row
// fails, so nobody adds one without saying who may call it. The services and the
// gateway are the real ones, in one process.
package authz_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/gateway"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/token"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	barrierv1 "github.com/parleychat/parley/proto/gen/parley/barrier/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
)

const (
	password = "a sentence nobody else would use 7"
	patience = 30 * time.Second
	// zeros is 32 bytes, for secrets of which nobody here needs to keep one.
	zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)

// settings leave out the limits of an address: hundreds of people come from one here.
var settings = []string{
	"PARLEY_AUTH_KEY_ENCRYPTION_KEY=" + zeros, "PARLEY_AUTH_REFRESH_SECRET=" + zeros, "PARLEY_AUTH_PASSWORD_PEPPER=" + zeros,
	"PARLEY_AUTH_REGISTER_LIMIT=0", "PARLEY_AUTH_LOGIN_ADDRESS_LIMIT=0", "PARLEY_AUTH_CODE_SEND_ADDRESS_LIMIT=0",
	"PARLEY_AUTH_BCRYPT_COST=4", "PARLEY_AUTH_INSECURE_PASSWORD_HASHING=true",
}

// world is all services behind a gateway.
type world struct {
	*servicetest.Harness
	t       testing.TB
	gateway string // host:port
	http    *http.Client
	h2c     *http.Client // for gRPC
	people  atomic.Int64

	expired, revoked servicetest.Caller
	expiredRaw       string
	revokedRaw       string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w := &world{t: t, Harness: servicetest.Start(t, servicetest.Options{Settings: settings, Mail: "auth", Log: log}, dev.Domains()...)}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	w.http = &http.Client{Transport: transport, Timeout: patience}
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	h2 := &http.Transport{Protocols: h2c}
	t.Cleanup(h2.CloseIdleConnections)
	w.h2c = &http.Client{Transport: h2, Timeout: patience}
	w.startGateway(log)

	p := w.person(t, identity.RoleUser)
	w.expiredRaw = w.TokenAt(servicetest.Caller{UserID: p.id, SessionID: p.session, Role: identity.RoleUser}, w.Clock.Now().Add(-2*servicetest.TokenLife))
	w.expired = w.Token(w.expiredRaw)
	w.revoke(p)
	return w
}

// revoke ends a session and waits until everybody has heard of it.
func (w *world) revoke(p *person) {
	w.t.Helper()
	w.revokedRaw = p.raw
	w.revoked = p.caller
	_, err := authv1connect.NewAuthServiceClient(w.Dial("auth", p.caller)).LogOut(w.t.Context(), &authv1.LogOutRequest{})
	require.NoError(w.t, err)
	asked := map[string]bool{}
	for _, m := range rpc.Methods() {
		if asked[m.Service] || !m.Public() || direct.call(w.t, w, m, who{caller: w.Anonymous()}, "{}") == "unknown" {
			continue
		}
		asked[m.Service] = true
		for _, d := range []door{direct, overHTTP} {
			require.Eventually(w.t, func() bool {
				return d.call(w.t, w, m, who{caller: w.revoked, raw: p.raw}, "{}") == "revoked"
			}, patience, 10*time.Millisecond, "%s at %s knows that the session has ended", m.Service, d.name)
		}
	}
}

// startGateway puts a gateway before the services, as `parley dev` does.
func (w *world) startGateway(log *slog.Logger) {
	cfg, err := gateway.Defaults()
	require.NoError(w.t, err)
	cfg.Exempt = []string{"127.0.0.0/8"}
	cfg.Socket.DrainWindow = 0
	revocations := token.NewRevocations(w.Clock, servicetest.TokenLife)
	g, err := gateway.New(w.t.Context(), cfg, gateway.Deps{
		Dialer: w.Dialer(), NATS: w.Bus.Conn(), Revocations: revocations, Clock: w.Clock, Log: log,
		Verifier: token.NewVerifier(w.UserKeys(), revocations, w.Clock, servicetest.Issuer, servicetest.Audience),
	})
	require.NoError(w.t, err)
	listener, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(w.t, err)
	w.gateway = listener.Addr().String()
	ctx, stop := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 2)
	go func() { ended <- g.Run(ctx, listener) }()
	go func() {
		if err := revocations.Follow(ctx, w.Bus); ctx.Err() == nil {
			ended <- err
			return
		}
		ended <- nil
	}()
	w.t.Cleanup(func() {
		stop()
		for range cap(ended) {
			require.NoError(w.t, <-ended)
		}
	})
	require.Eventually(w.t, func() bool { return g.Ready(w.t.Context()) == nil && revocations.Known(w.t.Context()) == nil },
		patience, 10*time.Millisecond, "the gateway is ready")
}

// person has an account that every service knows.
type person struct {
	id, session     uuid.UUID
	username, email string
	refresh         string
	caller          servicetest.Caller
	raw             string // the access token
}

// person registers somebody. A role above that of everybody is written into the
// account as the operator does: admins are looked up beside their token.
func (w *world) person(t testing.TB, role identity.Role) *person {
	t.Helper()
	n := w.people.Add(1)
	p := &person{username: fmt.Sprintf("person%d", n), email: fmt.Sprintf("person%d@example.org", n)}
	res, err := authv1connect.NewAuthServiceClient(w.Dial("auth", w.Anonymous())).Register(t.Context(), &authv1.RegisterRequest{
		Email: p.email, Username: p.username, Password: password,
	})
	require.NoError(t, err)
	require.Equal(t, barrierv1.Propagation_PROPAGATION_COMPLETE, res.GetPropagation())
	p.id, p.session = uuid.MustParse(res.GetUserId()), uuid.MustParse(res.GetTokens().GetSessionId())
	p.refresh = res.GetTokens().GetRefreshToken()
	if role != identity.RoleUser {
		_, err := w.DB("auth").Exec(t.Context(), "UPDATE account SET role = $2 WHERE id = $1", p.id, role.String())
		require.NoError(t, err)
	}
	p.raw = w.TokenAt(servicetest.Caller{UserID: p.id, SessionID: p.session, Role: role}, w.Clock.Now())
	p.caller = w.Token(p.raw)
	return p
}

// fill puts what is owner's into a request. Everything is made when a request
// asks for it.
func (w *world) fill(t testing.TB, request string, owner *person) string {
	t.Helper()
	fresh := w.people.Add(1)
	for name, value := range map[string]func() string{
		"$USERNAME":     func() string { return owner.username },
		"$USER":         func() string { return owner.id.String() },
		"$SESSION":      func() string { return owner.session.String() },
		"$REFRESH":      func() string { return owner.refresh },
		"$EMAIL":        func() string { return owner.email },
		"$PASSWORD":     func() string { return password },
		"$NEWNAME":      func() string { return fmt.Sprintf("new%d", fresh) },
		"$NEWEMAIL":     func() string { return fmt.Sprintf("new%d@example.org", fresh) },
		"$NEWID":        uuid.NewString,
		"$CONVERSATION": func() string { return w.conversation(t, owner) },
		"$PEER":         func() string { return w.person(t, identity.RoleUser).id.String() },
	} {
		quoted := `"` + name + `"`
		if strings.Contains(request, quoted) {
			request = strings.ReplaceAll(request, quoted, `"`+value()+`"`)
		}
	}
	require.NotContains(t, request, `"$`, "a placeholder that nobody knows")
	return request
}

// conversation is one of the owner with somebody else.
func (w *world) conversation(t testing.TB, owner *person) string {
	t.Helper()
	res, err := messagingv1connect.NewMessagingServiceClient(w.Dial("messaging", owner.caller)).CreateDirectConversation(t.Context(),
		&messagingv1.CreateDirectConversationRequest{UserId: w.person(t, identity.RoleUser).id.String()})
	require.NoError(t, err)
	return res.GetConversation().GetId()
}
