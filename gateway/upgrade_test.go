package gateway

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// A request that is no handshake is answered like everything that is refused.
func TestBadHandshake(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*http.Request){
		"NoUpgrade":  func(r *http.Request) { r.Header.Del("Upgrade") },
		"NoKey":      func(r *http.Request) { r.Header.Del("Sec-WebSocket-Key") },
		"OldVersion": func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "8") },
		"Post":       func(r *http.Request) { r.Method = http.MethodPost },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.address+SocketPath, http.NoBody)
			require.NoError(t, err)
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			r.Header.Set("Sec-WebSocket-Version", "13")
			r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
			change(r)
			response, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			defer func() { _ = response.Body.Close() }()
			require.Equal(t, http.StatusBadRequest, response.StatusCode)
			require.Equal(t, "application/json", response.Header.Get("Content-Type"))
			var told struct {
				Code string `json:"code"`
			}
			require.NoError(t, json.NewDecoder(response.Body).Decode(&told))
			require.Equal(t, "invalid_argument", told.Code)
		})
	}
}
