package auth

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestIsPublic(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1111": true, "142.250.74.78": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false,
		"100.64.0.1": false, "0.0.0.0": false, "255.255.255.255": false, "224.0.0.1": false, "192.0.2.1": false,
		"198.18.0.1": false, "::1": false, "::": false, "fe80::1": false, "fc00::1": false, "fd12::1": false, "ff02::1": false,
		"::ffff:10.0.0.1": false, "::ffff:127.0.0.1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false, "2001:db8::1": false,
	} {
		require.Equal(t, want, isPublic(netip.MustParseAddr(address)), address)
	}
}

func TestProviderClientIsBounded(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("/long/", func(w http.ResponseWriter, r *http.Request) {
		size := providerBytes
		if strings.HasSuffix(r.URL.Path, "/over") {
			size++
		}
		_, _ = io.WriteString(w, strings.Repeat("x", size)) // the reader stops where it wants
	})
	mux.HandleFunc("/around", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/around", http.StatusFound) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	get := func(client *http.Client, path string) (int, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, http.NoBody)
		require.NoError(t, err)
		res, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return len(body), err
	}
	within := newProviderClient(5*time.Second, true)
	t.Cleanup(within.CloseIdleConnections)
	n, err := get(within, "/long/exactly")
	require.NoError(t, err)
	require.Equal(t, providerBytes, n)
	_, err = get(within, "/long/over")
	require.ErrorIs(t, err, errAnswerTooLarge)
	_, err = get(within, "/around")
	require.ErrorContains(t, err, "redirects too often")

	outside := newProviderClient(5*time.Second, false)
	t.Cleanup(outside.CloseIdleConnections)
	_, err = get(outside, "/long/exactly")
	require.ErrorContains(t, err, "over https only")
	require.ErrorContains(t, publicOnly("10.0.0.1:443"), "private network")
	require.NoError(t, publicOnly("8.8.8.8:443"))
}

func TestRedirectAllowed(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]bool{
		"https://chat.example.org/oauth": true, "com.example.chat:/oauth": true, "http://127.0.0.1:5173/oauth": true,
		"http://localhost/oauth": true, "http://[::1]/": true,
		"http://chat.example.org/oauth": false, "https:///oauth": false, "/oauth": false, "javascript:alert(1)": false,
		"chat:/oauth": false, "https://chat.example.org/#a": false, "https://user@chat.example.org/": false, "": false,
	} {
		require.Equal(t, want, redirectAllowed(uri), uri)
	}
}
