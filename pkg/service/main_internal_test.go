package service

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/admin"
	"github.com/parleychat/parley/pkg/postgres"
	"github.com/parleychat/parley/pkg/testkit"
)

// lines is an output that may be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func lonely(setup func(context.Context, *Runtime) error) Definition {
	if setup == nil {
		setup = func(context.Context, *Runtime) error { return nil }
	}
	return Definition{
		Name: "lonely", Setup: setup,
		Migrations: fstest.MapFS{"0001_thing.sql": {Data: []byte("-- +goose Up\nCREATE TABLE thing (id int);")}},
		Settings: &struct {
			Size int `env:"SIZE" default:"7" doc:"How large it is."`
		}{},
	}
}

func TestMissingSettingsAreNamed(t *testing.T) {
	t.Parallel()
	var out, errOut lines
	require.Equal(t, 1, command(t.Context(), lonely(nil), nil, []string{"PARLEY_LONELY_TYPO=1"}, &out, &errOut))
	for _, name := range []string{"DATABASE_URL", "NATS_URL", "JWKS_URL", "SERVICE_KEY"} {
		require.Contains(t, errOut.String(), "PARLEY_LONELY_"+name+": missing")
	}
	// The unknown ones can only be told once the service has taken its own.
	require.NotContains(t, errOut.String(), "TYPO")
}

func TestBadKeysAreNamedAndNotShown(t *testing.T) {
	t.Parallel()
	var out, errOut lines
	require.Equal(t, 1, command(t.Context(), lonely(nil), nil, []string{
		"PARLEY_LONELY_DATABASE_URL=x", "PARLEY_LONELY_NATS_URL=x", "PARLEY_LONELY_JWKS_URL=x", "PARLEY_LONELY_LOG_FORMAT=xml",
		"PARLEY_LONELY_SERVICE_KEY=c2VjcmV0", "PARLEY_LONELY_SERVICE_PUBLIC_KEYS=user=AAAA",
	}, &out, &errOut))
	require.Contains(t, errOut.String(), "PARLEY_LONELY_SERVICE_KEY: an Ed25519 key has 32 bytes, this one 6")
	require.Contains(t, errOut.String(), "PARLEY_LONELY_SERVICE_PUBLIC_KEYS: user: an Ed25519 public key has 32 bytes")
	require.Contains(t, errOut.String(), "PARLEY_LONELY_LOG_FORMAT")
	require.NotContains(t, errOut.String(), "c2VjcmV0")
}

func TestUnknownCommand(t *testing.T) {
	t.Parallel()
	var out, errOut lines
	require.Equal(t, 2, command(t.Context(), lonely(nil), []string{"fly"}, nil, &out, &errOut))
	require.Contains(t, errOut.String(), "usage: lonely [migrate|config]")
}

func TestConfigListsEverything(t *testing.T) {
	t.Parallel()
	var out, errOut lines
	require.Equal(t, 0, command(t.Context(), lonely(nil), []string{"config"}, nil, &out, &errOut))
	require.Regexp(t, `PARLEY_LONELY_SERVICE_KEY +base64 +required`, out.String())
	require.Regexp(t, `PARLEY_LONELY_SIZE +int +default 7 +How large it is\.`, out.String())
	fields, err := Describe(lonely(nil))
	require.NoError(t, err)
	for _, f := range fields {
		require.NotEmpty(t, f.Doc, f.Name)
		require.False(t, f.Required && f.Default != "", f.Name)
	}
}

func TestMigrateNeedsAnAddress(t *testing.T) {
	t.Parallel()
	var out, errOut lines
	require.Equal(t, 1, command(t.Context(), lonely(nil), []string{"migrate"}, nil, &out, &errOut))
	require.Contains(t, errOut.String(), "PARLEY_LONELY_MIGRATE_DATABASE_URL: missing")
}

func TestParsePrivateKey(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	for _, raw := range [][]byte{key, key.Seed()} {
		got, err := ParsePrivateKey(raw)
		require.NoError(t, err)
		require.True(t, key.Equal(got))
	}
	broken := append([]byte{}, key...)
	broken[40] ^= 1
	_, err = ParsePrivateKey(broken)
	require.Error(t, err)
	_, err = ParsePrivateKey(nil)
	require.Error(t, err)
	public, err := ParsePublicKey(base64.URLEncoding.EncodeToString(key[32:]))
	require.NoError(t, err)
	require.True(t, public.Equal(key.Public()))
	_, err = ParsePublicKey("not base64!")
	require.Error(t, err)
}

// provisioned returns the URL of the role of lonely in an empty database.
func provisioned(t *testing.T) string {
	t.Helper()
	adminURL := testkit.EmptyDatabase(t)
	conn, err := pgx.Connect(t.Context(), adminURL)
	require.NoError(t, err)
	require.NoError(t, postgres.EnsureService(t.Context(), conn, "lonely", "test"))
	require.NoError(t, conn.Close(t.Context()))
	u, err := url.Parse(adminURL)
	require.NoError(t, err)
	u.User = url.UserPassword(postgres.RoleName("lonely"), "test")
	return u.String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().String()
}

// The whole life of a service that is alone: migrate, start while NATS is away,
// become ready when it comes, stay ready when it goes, end at a signal.
func TestTheWholeLife(t *testing.T) {
	t.Parallel()
	database, nats := provisioned(t), testkit.PrivateNATS(t)
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	panel := freeAddress(t)
	environ := []string{
		"PARLEY_LONELY_DATABASE_URL=" + database, "PARLEY_LONELY_NATS_URL=" + nats.URL,
		"PARLEY_LONELY_JWKS_URL=http://127.0.0.1:1/", "PARLEY_LONELY_LISTEN=127.0.0.1:0", "PARLEY_LONELY_ADMIN_LISTEN=" + panel,
		"PARLEY_LONELY_SERVICE_KEY=" + base64.StdEncoding.EncodeToString(key.Seed()),
		"PARLEY_LONELY_BACKENDS=user=http://127.0.0.1:1;http://127.0.0.1:2,auth=http://127.0.0.1:3",
		"PARLEY_LONELY_DRAIN_DELAY=1ms", "PARLEY_LONELY_REDIS_URL=redis://127.0.0.1:1/0", "PARLEY_LONELY_CLOCK_OFFSET=24h",
		"PARLEY_OTHER_TYPO=1",
	}
	var out, errOut lines
	require.Equal(t, 0, command(t.Context(), lonely(nil), []string{"migrate"}, environ, &out, &errOut), errOut.String())

	nats.Stop()
	var moved time.Time
	def := lonely(func(_ context.Context, rt *Runtime) error { moved = rt.Clock.Now(); return nil })
	ctx, cancel := context.WithCancel(t.Context())
	exit := make(chan int, 1)
	go func() { exit <- command(ctx, def, nil, environ, &out, &errOut) }()
	status := func() (s admin.Status) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+panel+"/readyz", nil)
		require.NoError(t, err)
		resp, err := client.Do(req)
		if err != nil {
			return admin.Status{Why: err.Error()}
		}
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, json.Unmarshal(body, &s))
		return s
	}
	until := func(why string, ok func(admin.Status) bool) {
		t.Helper()
		require.Eventually(t, func() bool { return ok(status()) }, 30*time.Second, 50*time.Millisecond, why)
	}

	until("it starts without NATS and Redis", func(s admin.Status) bool { return s.Checks["lonely/postgres"] == "ok" && s.Why == "" })
	require.False(t, status().Ready, "NATS has never been there")
	nats.Restart()
	until("NATS is there", func(s admin.Status) bool { return s.Ready })
	nats.Stop()
	until("NATS has gone, which is told and no more", func(s admin.Status) bool { return s.Ready && s.Checks["lonely/nats"] != "ok" })
	require.WithinDuration(t, time.Now().Add(24*time.Hour), moved, time.Minute, "the clock is moved")

	cancel()
	select {
	case code := <-exit:
		require.Equal(t, 0, code, errOut.String())
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	require.NotContains(t, errOut.String(), "test@", "no password is logged")
}

func TestAnUnknownSettingStopsALonelyService(t *testing.T) {
	t.Parallel()
	database := provisioned(t)
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	var out, errOut lines
	require.Equal(t, 1, command(t.Context(), lonely(nil), nil, []string{
		"PARLEY_LONELY_DATABASE_URL=" + database, "PARLEY_LONELY_NATS_URL=" + testkit.NATS(t).URL,
		"PARLEY_LONELY_JWKS_URL=http://127.0.0.1:1/", "PARLEY_LONELY_LISTEN=127.0.0.1:0", "PARLEY_LONELY_ADMIN_LISTEN=127.0.0.1:0",
		"PARLEY_LONELY_SERVICE_KEY=" + base64.StdEncoding.EncodeToString(key), "PARLEY_LONELY_TYPO=1",
	}, &out, &errOut))
	require.Contains(t, errOut.String(), "PARLEY_LONELY_TYPO: no such setting")
}
