package gateway

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/pkg/token"
)

// safeBuffer is written by the program and read by the test.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var loggedAddress = regexp.MustCompile(`listening.* address=(\S+)`)

// TestProgram runs the whole program as main does, with a bus and the keys of
// auth, up to an orderly end.
func TestProgram(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	w := &world{t: t, clock: clock.System(), key: token.SigningKey{ID: keyID, Private: private}}
	auth := w.serve(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		set, err := token.MarshalKeySet(map[string]ed25519.PublicKey{keyID: public})
		if err == nil {
			_, err = rw.Write(set)
		}
		if err != nil {
			t.Error(err)
		}
	}))
	bus := testkit.NATS(t)
	admin := freeAddress(t)
	var log safeBuffer
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		done <- command(ctx, nil, []string{
			"PARLEY_GATEWAY_NATS_URL=" + bus.URL, "PARLEY_GATEWAY_LISTEN=127.0.0.1:0", "PARLEY_GATEWAY_ADMIN_LISTEN=" + admin,
			"PARLEY_GATEWAY_JWKS_URL=" + auth + JWKSPath, "PARLEY_GATEWAY_BACKENDS=auth=" + auth + ",messaging=" + auth,
			"PARLEY_GATEWAY_TOKEN_ISSUER=" + issuer, "PARLEY_GATEWAY_TOKEN_AUDIENCE=" + audience, "PARLEY_GATEWAY_TOKEN_LIFE=2h",
			"PARLEY_GATEWAY_LOG_FORMAT=text", "PARLEY_GATEWAY_DRAIN_DELAY=10ms", "PARLEY_GATEWAY_SOCKET_DRAIN_WINDOW=10ms",
		}, &log, &log)
	}()
	require.Eventually(t, func() bool { return ready(t, admin) }, patience, 10*time.Millisecond, "%s", &log)
	w.address = loggedAddress.FindStringSubmatch(log.String())[1]
	p := newPerson()
	c := w.connect(p, SubprotocolJSON)

	// A revocation comes as an event of auth and ends the socket.
	conn, err := event.Connect(t.Context(), event.Config{URL: bus.URL, Name: "auth"}, testkit.Logger(t))
	require.NoError(t, err)
	defer conn.Close()
	ev := event.New("session.revoked", p.session.String(), 1, nil)
	require.NoError(t, event.Complete(t.Context(), ev, w.clock.Now()))
	require.NoError(t, conn.Publish(t.Context(), "auth", w.clock.Now(), ev))
	require.Equal(t, "SESSION_REVOKED", c.closed().Text)

	d := w.connect(newPerson(), SubprotocolProto)
	stop()
	require.Equal(t, closeRestart, d.closed().Code)
	select {
	case code := <-done:
		require.Zero(t, code, log.String())
	case <-time.After(3 * patience):
		require.Fail(t, "the program does not end")
	}
	require.NotContains(t, log.String(), "level=ERROR")
}

func ready(t *testing.T, admin string) bool {
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+"/readyz", nil)
	require.NoError(t, err)
	response, err := httpClient(t, false).Do(request)
	if err != nil {
		return false
	}
	require.NoError(t, response.Body.Close())
	return response.StatusCode == http.StatusOK
}

func freeAddress(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

func TestProgramRefusesBadSettings(t *testing.T) {
	t.Parallel()
	var out, errOut safeBuffer
	require.Equal(t, 1, command(t.Context(), nil, []string{"PARLEY_GATEWAY_TYPO=1"}, &out, &errOut))
	for _, name := range []string{"PARLEY_GATEWAY_TYPO", "PARLEY_GATEWAY_NATS_URL", "PARLEY_GATEWAY_JWKS_URL", "PARLEY_GATEWAY_BACKENDS"} {
		require.Contains(t, errOut.String(), name)
	}
	require.Equal(t, 2, command(t.Context(), []string{"nonsense"}, nil, &out, &errOut))
	require.Zero(t, command(t.Context(), []string{"config"}, nil, &out, &errOut))
	require.Contains(t, out.String(), "PARLEY_GATEWAY_SOCKET_PING_INTERVAL")
}

// TestAllDomainsAreLinked compares the imports with the generated packages: a
// domain that is not linked would not be routed, and nobody would be told.
func TestAllDomainsAreLinked(t *testing.T) {
	t.Parallel()
	generated, err := filepath.Glob("../proto/gen/parley/*/v1/*connect")
	require.NoError(t, err)
	require.NotEmpty(t, generated)
	linked := map[string]bool{}
	for _, method := range rpc.Methods() {
		linked[method.Service] = true
	}
	source, err := os.ReadFile("protos.go")
	require.NoError(t, err)
	for _, dir := range generated {
		domain := filepath.Base(filepath.Dir(filepath.Dir(dir)))
		require.True(t, linked[domain], domain)
		require.Contains(t, string(source), "/parley/"+domain+"/v1\"", "protos.go")
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	w := newWorld(t, func(s *setup) { s.meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)) })
	p := newPerson()
	c := w.connect(p, SubprotocolProto)
	c.sendMessage(2, "", "x")
	c.receive()
	c.sendMessage(3, strings.Repeat("x", maxLane+1), "x")
	require.NotNil(t, c.receive().GetReply().GetError())
	require.NoError(t, w.publisher.Push(t.Context(), users(p), entryPush(1)))
	c.receive()
	require.NoError(t, c.ws.Close())
	response := get(t, w, "/parley.nobody.v1.NobodyService/Nothing", nil)
	require.Equal(t, http.StatusNotImplemented, response.StatusCode)

	want := []string{
		"gateway_connections", "gateway_frames", "gateway_push_delivery", "gateway_closes", "gateway_rpc_duration",
		"gateway_handshakes", "gateway_rejected_requests", "INVALID_ARGUMENT", "METHOD_UNKNOWN",
	}
	require.Eventually(t, func() bool {
		var data metricdata.ResourceMetrics
		require.NoError(t, reader.Collect(t.Context(), &data))
		text, err := json.Marshal(data)
		require.NoError(t, err)
		for _, name := range want {
			if !strings.Contains(string(text), `"`+name+`"`) {
				return false
			}
		}
		return strings.Contains(string(text), "1006")
	}, patience, 5*time.Millisecond)
}
