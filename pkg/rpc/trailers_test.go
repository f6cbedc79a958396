package rpc_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
)

// A handler that answers with trailers only sets them before the header is
// written. A proxy in front of it, as the gateway is, must pass each on once.
func TestTrailersBeforeTheHeaderPassAProxyOnce(t *testing.T) {
	t.Parallel()
	services := rpc.NewInProcess()
	services.Register("auth", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Add(http.TrailerPrefix+"Grpc-Status", "3")
		_ = http.NewResponseController(w).Flush()
	}))
	backend := services.Backend("auth")
	target, err := url.Parse(backend.URL)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Transport: backend.Transport, Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target) },
	})
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/x", http.NoBody)
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/grpc")
	res, err := server.Client().Do(req)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, []string{"3"}, res.Trailer["Grpc-Status"])
	require.Empty(t, res.Header["Grpc-Status"])
}
