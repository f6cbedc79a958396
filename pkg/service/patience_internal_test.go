package service

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/testkit"
)

// A service whose setup reads from the database is started while that is away. It
// waits, and is ready when the database is.
func TestStartBeforeTheDatabase(t *testing.T) {
	t.Parallel()
	server := testkit.PrivatePostgres(t)
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	read := make(chan error, 100)
	def := lonely(func(ctx context.Context, rt *Runtime) error {
		_, err := rt.DB.Exec(ctx, "SELECT FROM thing")
		read <- err
		return err
	})
	database := server.NewDatabase(t, testkit.Schema{Service: def.Name, Migrations: def.Migrations})
	panel := freeAddress(t)
	environ := []string{
		"PARLEY_LONELY_DATABASE_URL=" + database.URL(def.Name), "PARLEY_LONELY_NATS_URL=" + testkit.NATS(t).URL,
		"PARLEY_LONELY_JWKS_URL=http://127.0.0.1:1/", "PARLEY_LONELY_LISTEN=127.0.0.1:0", "PARLEY_LONELY_ADMIN_LISTEN=" + panel,
		"PARLEY_LONELY_SERVICE_KEY=" + base64.StdEncoding.EncodeToString(key.Seed()), "PARLEY_LONELY_DRAIN_DELAY=1ms",
	}
	server.Kill9()
	ctx, cancel := context.WithCancel(t.Context())
	var out, errOut lines
	exit := make(chan int, 1)
	go func() { exit <- command(ctx, def, nil, environ, &out, &errOut) }()
	ready := func() bool {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+panel+"/readyz", http.NoBody)
		require.NoError(t, err)
		res, err := client.Do(req)
		if err != nil {
			return false
		}
		require.NoError(t, res.Body.Close())
		return res.StatusCode == http.StatusOK
	}
	select {
	case err := <-read:
		require.Error(t, err, "the database is away")
	case <-time.After(30 * time.Second):
		require.Fail(t, "it does not even try")
	}
	require.False(t, ready())
	server.Restart()
	require.Eventually(t, ready, 30*time.Second, 20*time.Millisecond, "it starts when the database is there")
	cancel()
	select {
	case code := <-exit:
		require.Zero(t, code, errOut.String())
	case <-time.After(time.Minute):
		require.Fail(t, "it does not end")
	}
}
