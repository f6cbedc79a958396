package servicetest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/token"
)

// Caller is whoever makes a call. Each call carries a token that is made for it,
// so moving the clock does not log anybody out.
type Caller struct {
	// UserID, SessionID and Role are set for people.
	UserID    uuid.UUID
	SessionID uuid.UUID
	Role      identity.Role

	option connect.ClientOption
}

// Anonymous calls without a token.
func (h *Harness) Anonymous() Caller { return Caller{option: connect.WithClientOptions()} }

// User is a person with a session of their own.
func (h *Harness) User(id uuid.UUID) Caller { return h.UserWithRole(id, identity.RoleUser) }

// UserWithRole is a moderator or an admin.
func (h *Harness) UserWithRole(id uuid.UUID, role identity.Role) Caller {
	c := Caller{UserID: id, SessionID: uuid.New(), Role: role}
	c.option = bearer(func() (string, error) { return h.accessToken(c) })
	return c
}

// Token calls with exactly this access token.
func (h *Harness) Token(raw string) Caller {
	return Caller{option: bearer(func() (string, error) { return raw, nil })}
}

// Service is another service, with a service token of its own.
func (h *Harness) Service(name, audience string) Caller {
	h.t.Helper()
	signer, err := token.NewServiceSigner(name, h.key(name), h.clock)
	if err != nil {
		h.t.Fatalf("make the signer of %s: %v", name, err)
	}
	return Caller{option: connect.WithClientOptions(rpc.ClientOptions(signer, audience)...)}
}

// AccessToken returns a token of a person, good for TokenLife from now.
func (h *Harness) AccessToken(c Caller) string {
	h.t.Helper()
	raw, err := h.accessToken(c)
	if err != nil {
		h.t.Fatalf("sign a token: %v", err)
	}
	return raw
}

func (h *Harness) accessToken(c Caller) (string, error) {
	now := h.clock.Now()
	return token.SignAccess(h.userKey, token.Claims{
		UserID: c.UserID, SessionID: c.SessionID, Role: c.Role, IssuedAt: now, ExpiresAt: now.Add(TokenLife),
	}, Issuer, Audience)
}

// Dial returns the arguments of a generated client's constructor:
//
//	userv1connect.NewUserServiceClient(h.Dial("user", h.User(id)))
func (h *Harness) Dial(service string, c Caller) (connect.HTTPClient, string, connect.ClientOption) {
	b := h.dialer.Backend(service)
	return b.HTTP, b.URL, c.option
}

// DialInstance is Dial for one replica.
func (h *Harness) DialInstance(in *Instance, c Caller) (connect.HTTPClient, string, connect.ClientOption) {
	return in.backend.HTTP, in.backend.URL, c.option
}

// HTTP returns a client for the plain HTTP of a service and the base of its URLs.
func (h *Harness) HTTP(service string) (*http.Client, string) {
	b := h.dialer.Backend(service)
	return &http.Client{Transport: b.Transport}, b.URL
}

// userKeys accept the harness's tokens and, when auth is under test, its own.
func (h *Harness) userKeys() token.KeySource {
	client, url := h.HTTP("auth")
	return bothKeys{
		own:  token.StaticKeys{h.userKey.ID: publicOf(h.userKey.Private)},
		auth: token.RemoteKeys(client, url+"/.well-known/jwks.json", h.clock),
	}
}

type bothKeys struct {
	own  token.StaticKeys
	auth *token.RemoteSet
}

// Key implements token.KeySource.
func (k bothKeys) Key(ctx context.Context, kid string) (ed25519.PublicKey, error) {
	if key, ok := k.own[kid]; ok {
		return key, nil
	}
	key, err := k.auth.Key(ctx, kid)
	if err != nil {
		return nil, fmt.Errorf("ask auth for the key: %w", err)
	}
	return key, nil
}

// key is the private key of a service, made when it is first asked for.
func (h *Harness) key(name string) ed25519.PrivateKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys[name] == nil {
		h.keys[name] = newKey(h.t)
	}
	return h.keys[name]
}

// callers are the public keys of everybody whom some method names as a caller.
func (h *Harness) callers() map[string]ed25519.PublicKey {
	callers := map[string]ed25519.PublicKey{}
	for _, m := range rpc.Methods() {
		for _, name := range append(m.InternalCallers, m.Service) {
			callers[name] = publicOf(h.key(name))
		}
	}
	return callers
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey {
	public, _ := key.Public().(ed25519.PublicKey) // always is
	return public
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	return key
}

// bearer puts an access token on every call.
func bearer(sign func() (string, error)) connect.ClientOption {
	return connect.WithInterceptors(bearerInterceptor{sign})
}

type bearerInterceptor struct{ sign func() (string, error) }

// WrapUnary implements connect.Interceptor.
func (b bearerInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		raw, err := b.sign()
		if err != nil {
			return nil, err
		}
		req.Header().Set("Authorization", "Bearer "+raw)
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (b bearerInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		if raw, err := b.sign(); err == nil { // without a token the call is refused, which tells enough
			conn.RequestHeader().Set("Authorization", "Bearer "+raw)
		}
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (b bearerInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
