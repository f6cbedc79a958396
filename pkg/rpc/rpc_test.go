package rpc_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	issuer   = "parley-test"
	audience = "parley"
	life     = 10 * time.Minute
)

// What GetUser does is chosen by the id that is asked for.
var (
	idMissing  = uuid.MustParse("00000000-0000-7000-8000-000000000001").String()
	idPanic    = uuid.MustParse("00000000-0000-7000-8000-000000000002").String()
	idUncoded  = uuid.MustParse("00000000-0000-7000-8000-000000000003").String()
	idHang     = uuid.MustParse("00000000-0000-7000-8000-000000000004").String()
	idLimited  = uuid.MustParse("00000000-0000-7000-8000-000000000005").String()
	idOutage   = uuid.MustParse("00000000-0000-7000-8000-000000000006").String()
	idForeign  = uuid.MustParse("00000000-0000-7000-8000-000000000007").String()
	idPassesOn = uuid.MustParse("00000000-0000-7000-8000-000000000008").String()
)

var (
	idCallee     = uuid.MustParse("00000000-0000-7000-8000-000000000009").String()
	idUnstorable = uuid.MustParse("00000000-0000-7000-8000-00000000000a").String()
)

// people is a hand-made UserService.
type people struct {
	hanging chan struct{}
	callee  connect.HTTPClient // a service that is away
}

var _ userv1connect.UserServiceHandler = (*people)(nil)

func (p *people) GetUser(ctx context.Context, req *userv1.GetUserRequest) (*userv1.GetUserResponse, error) {
	switch req.GetUserId() {
	case idMissing:
		return nil, rpc.Error(connect.CodeNotFound, errorv1.Reason_REASON_USER_NOT_FOUND, "no such person")
	case idPanic:
		zero := len(req.GetUserId()) - len(idPanic)
		return nil, fmt.Errorf("not reached: %d", 1/zero)
	case idUncoded:
		return nil, errors.New("secret table is on fire")
	case idHang:
		select {
		case p.hanging <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return nil, fmt.Errorf("wait: %w", ctx.Err())
	case idLimited:
		return nil, rpc.WithRetryAfter(rpc.Error(connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED, "slow down"), 7*time.Second)
	case idOutage:
		return nil, fmt.Errorf("query: %w", &net.OpError{Op: "dial", Err: errors.New("connection refused to 10.1.2.3")})
	case idUnstorable:
		return nil, fmt.Errorf("insert: %w", &pgconn.PgError{Code: "22021", Message: "invalid byte sequence for encoding \"UTF8\": 0x00"})
	case idForeign:
		return nil, connect.NewWireError(connect.CodeUnauthenticated, errors.New("your service token stinks"))
	case idPassesOn:
		wire := connect.NewWireError(connect.CodePermissionDenied, errors.New("not allowed"))
		for _, d := range rpc.Error(connect.CodePermissionDenied, errorv1.Reason_REASON_SEND_NOT_ALLOWED, "x").Details() {
			wire.AddDetail(d)
		}
		return nil, wire
	}
	if req.GetUserId() == idCallee {
		_, err := userv1connect.NewUserServiceClient(p.callee, "http://away", rpc.ClientOptions(nil, "away")...).
			GetUser(ctx, &userv1.GetUserRequest{})
		return nil, fmt.Errorf("ask the service away: %w", err)
	}
	caller := identity.From(ctx)
	return &userv1.GetUserResponse{User: &userv1.User{Id: caller.UserID.String(), DisplayName: caller.Role.String()}}, nil
}

func (p *people) BatchGetUsers(context.Context, *userv1.BatchGetUsersRequest) (*userv1.BatchGetUsersResponse, error) {
	return &userv1.BatchGetUsersResponse{}, nil
}

// accounts is a hand-made AuthService, of which only two methods matter here.
type accounts struct {
	authv1connect.UnimplementedAuthServiceHandler
}

func (accounts) LogIn(ctx context.Context, _ *authv1.LogInRequest) (*authv1.LogInResponse, error) {
	return &authv1.LogInResponse{UserId: identity.From(ctx).Kind.String()}, nil
}

func (accounts) BatchGetAccounts(ctx context.Context, _ *authv1.BatchGetAccountsRequest) (*authv1.BatchGetAccountsResponse, error) {
	return &authv1.BatchGetAccountsResponse{Accounts: []*authv1.Account{{Username: identity.From(ctx).Service}}}, nil
}

// world is one server with all its keys, reachable over the network and in
// process.
type world struct {
	server   *rpc.Server
	people   *people
	clock    *clock.Fake
	key      token.SigningKey
	revoked  *token.Revocations
	signers  map[string]*token.ServiceSigner
	dialer   *rpc.InProcess
	url      string // h2c and HTTP/1.1
	logs     *logCounter
	stop     context.CancelFunc
	finished chan error
}

type option func(*rpc.Config)

func newWorld(t testing.TB, opts ...option) *world {
	t.Helper()
	w := &world{
		people: &people{hanging: make(chan struct{}, 1)},
		clock:  clock.NewFake(time.Now().Truncate(time.Second)), signers: make(map[string]*token.ServiceSigner),
		logs: &logCounter{}, finished: make(chan error, 1),
	}
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	w.key = token.SigningKey{ID: token.KeyID(public), Private: private}
	w.revoked = token.NewRevocations(w.clock, life)
	callers := make(map[string]ed25519.PublicKey)
	for _, name := range []string{"user", "stranger"} {
		pub, priv, err := ed25519.GenerateKey(nil)
		require.NoError(t, err)
		callers[name] = pub
		w.signers[name], err = token.NewServiceSigner(name, priv, w.clock)
		require.NoError(t, err)
	}
	cfg := rpc.Config{
		Service: "auth", Log: slog.New(w.logs), DrainGrace: 5 * time.Second,
		Users:    token.NewVerifier(token.StaticKeys{w.key.ID: public}, w.revoked, w.clock, issuer, audience),
		Services: token.NewServiceVerifier("auth", callers, w.clock),
	}
	for _, o := range opts {
		o(&cfg)
	}
	w.server = rpc.NewServer(cfg)
	require.NoError(t, w.server.Handle(userv1connect.NewUserServiceHandler(w.people, w.server.Options()...)))
	require.NoError(t, w.server.Handle(authv1connect.NewAuthServiceHandler(accounts{}, w.server.Options()...)))
	w.dialer = rpc.NewInProcess()
	w.dialer.Register("auth", w.server.Handler())
	nobody, err := rpc.Remote(map[string]string{"away": "http://127.0.0.1:1"}, rpc.RemoteConfig{})
	require.NoError(t, err)
	t.Cleanup(nobody.Close)
	w.people.callee = nobody.Backend("away").HTTP
	w.serve(t)
	return w
}

func (w *world) serve(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.url = "http://" + ln.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.finished <- w.server.Serve(ctx, ln)
	}()
	t.Cleanup(func() { stop(); <-done })
}

// access makes an access token of a new session.
func (w *world) access(t testing.TB, role identity.Role) (raw string, c token.Claims) {
	t.Helper()
	c = token.Claims{
		UserID: uuid.New(), SessionID: uuid.New(), Role: role,
		IssuedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(life),
	}
	raw, err := token.SignAccess(w.key, c, issuer, audience)
	require.NoError(t, err)
	return raw, c
}

// transport is one way to reach the server.
type transport struct {
	name string
	http connect.HTTPClient
	url  string
	opts []connect.ClientOption
}

func (w *world) transports(t testing.TB) []transport {
	t.Helper()
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	h1 := &http.Transport{}
	t.Cleanup(h2.CloseIdleConnections)
	t.Cleanup(h1.CloseIdleConnections)
	remote, err := rpc.Remote(map[string]string{"auth": w.url}, rpc.RemoteConfig{})
	require.NoError(t, err)
	t.Cleanup(remote.Close)
	inside, outside := w.dialer.Backend("auth"), remote.Backend("auth")
	return []transport{
		{"connect proto h2c", &http.Client{Transport: h2}, w.url, nil},
		{"connect json h2c", &http.Client{Transport: h2}, w.url, []connect.ClientOption{connect.WithProtoJSON()}},
		{"connect json h1", &http.Client{Transport: h1}, w.url, []connect.ClientOption{connect.WithProtoJSON()}},
		{"grpc", &http.Client{Transport: h2}, w.url, []connect.ClientOption{connect.WithGRPC()}},
		{"grpc-web", &http.Client{Transport: h1}, w.url, []connect.ClientOption{connect.WithGRPCWeb()}},
		{"balanced", outside.HTTP, outside.URL, nil},
		{"in process proto", inside.HTTP, inside.URL, nil},
		{"in process json", inside.HTTP, inside.URL, []connect.ClientOption{connect.WithProtoJSON()}},
		{"in process grpc", inside.HTTP, inside.URL, []connect.ClientOption{connect.WithGRPC()}},
		{"in process grpc-web", inside.HTTP, inside.URL, []connect.ClientOption{connect.WithGRPCWeb()}},
	}
}

// overEveryTransport runs a test once per transport, each with a world of its own
// because logs are counted.
func overEveryTransport(t *testing.T, fn func(t *testing.T, w *world, tr transport)) {
	t.Helper()
	for i, tr := range newWorld(t).transports(t) {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			fn(t, w, w.transports(t)[i])
		})
	}
}

// authorized puts a token into the context's headers.
func authorized(ctx context.Context, raw string) context.Context {
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set("Authorization", "Bearer "+raw)
	return ctx
}

// logCounter counts what is logged at error level and keeps the last record.
type logCounter struct {
	mu     sync.Mutex
	errors []string
}

func (l *logCounter) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}
func (l *logCounter) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *logCounter) WithGroup(string) slog.Handler      { return l }

func (l *logCounter) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, line)
	return nil
}

func (l *logCounter) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.errors
	l.errors = nil
	return out
}
