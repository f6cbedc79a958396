package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/parleychat/parley/pkg/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newServer() *admin.Server { return admin.New(slog.New(slog.DiscardHandler), nil) }

func TestReadiness(t *testing.T) {
	t.Parallel()
	s := newServer()
	require.Equal(t, "starting", s.Status(t.Context()).Why)
	require.False(t, s.Status(t.Context()).Ready)

	s.Started()
	require.True(t, s.Status(t.Context()).Ready)

	s.Drain()
	require.Equal(t, "draining", s.Status(t.Context()).Why)
	require.False(t, s.Status(t.Context()).Ready)
}

func TestNeeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		away.Store(true)
		check := func(context.Context) error {
			if away.Load() {
				return errors.New("away")
			}
			return nil
		}
		always, once := newServer(), newServer()
		always.AddCheck("postgres", admin.Always, check)
		once.AddCheck("nats", admin.Once, check)
		always.Started()
		once.Started()

		require.False(t, always.Status(t.Context()).Ready)
		require.False(t, once.Status(t.Context()).Ready, "it has never been there")
		require.Equal(t, "away", once.Status(t.Context()).Checks["nats"])

		away.Store(false)
		<-time.After(time.Second) // virtual: the remembered answer grows old
		require.True(t, always.Status(t.Context()).Ready)
		require.True(t, once.Status(t.Context()).Ready)

		away.Store(true)
		<-time.After(time.Second)
		require.False(t, always.Status(t.Context()).Ready)
		require.True(t, once.Status(t.Context()).Ready, "it was there once")
		require.Equal(t, "away", once.Status(t.Context()).Checks["nats"])
	})
}

func TestAHangingCheckIsCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.Started()
		s.AddCheck("slow", admin.Always, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		start := time.Now()
		require.False(t, s.Status(t.Context()).Ready)
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}

func TestServe(t *testing.T) {
	t.Parallel()
	s := newServer()
	s.AddCheck("postgres", admin.Always, func(context.Context) error { return nil })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()

	ask := func(method, path string) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, nil)
		require.NoError(t, err)
		resp, err := client.Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode, body
	}

	get := func(path string) (int, []byte) { return ask(http.MethodGet, path) }
	code, _ := get("/livez")
	require.Equal(t, 200, code)
	code, _ = get("/readyz")
	require.Equal(t, 503, code)
	s.Started()
	code, body := get("/readyz")
	require.Equal(t, 200, code)
	var status admin.Status
	require.NoError(t, json.Unmarshal(body, &status))
	require.Equal(t, map[string]string{"postgres": "ok"}, status.Checks)
	code, _ = get("/debug/pprof/goroutine?debug=1")
	require.Equal(t, 200, code)
	code, _ = get("/debug/memory/release")
	require.Equal(t, 405, code)
	code, _ = ask(http.MethodPost, "/debug/memory/release")
	require.Equal(t, 204, code)

	cancel()
	require.NoError(t, <-served)
}
