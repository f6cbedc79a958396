package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/parleychat/parley/pkg/telemetry"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

const jwt = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"

func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	u, err := url.Parse("nats://svc:hunter2@nats:4222")
	require.NoError(t, err)
	for name, attr := range map[string]slog.Attr{
		"password key":     slog.String("password", "hunter2"),
		"part of a key":    slog.String("refresh_token", "hunter2"),
		"upper case key":   slog.String("Authorization", "hunter2"), //nolint:sloglint // as a careless caller writes it
		"e-mail key":       slog.String("email", "hunter2"),
		"in a group":       slog.Group("request", slog.String("secret", "hunter2")),
		"JWT value":        slog.String("got", "token is "+jwt+" hunter"),
		"bearer value":     slog.String("header", "Bearer hunter2hunter2"),
		"database URL":     slog.String("url", "postgres://auth:hunter2@db/parley"),
		"URL value":        slog.Any("url", u),
		"error":            slog.Any("error", errors.New("dial postgres://auth:hunter2@db: refused")),
		"list":             slog.Any("args", []string{"postgres://auth:hunter2@db", jwt}),
		"struct":           slog.Any("cfg", struct{ URL string }{"postgres://auth:hunter2@db"}),
		"address in error": slog.Any("error", errors.New("no such account hunter2@example.org")),
		"proto message":    slog.Any("event", &eventv1.Event{Key: "hunter2"}),
		"number":           slog.Int("otp", 123456),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, format := range []string{"text", "json"} {
				var out bytes.Buffer
				log := telemetry.NewLogger(telemetry.Config{LogFormat: format, LogOutput: &out})
				log.LogAttrs(t.Context(), slog.LevelInfo, "hello", attr)
				log.With(attr).Info("hello")
				require.NotContains(t, out.String(), "hunter2")
				require.NotContains(t, out.String(), jwt)
				require.NotContains(t, out.String(), "123456")
			}
		})
	}
}

func TestMessagesAreMasked(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	telemetry.NewLogger(telemetry.Config{LogOutput: &out}).Info("got " + jwt)
	require.Contains(t, out.String(), "[masked]")
	require.NotContains(t, out.String(), jwt)
}

func TestHarmlessThingsStayReadable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := telemetry.NewLogger(telemetry.Config{LogFormat: "json", LogOutput: &out})
	log.Info("started", "service", "auth", "listen", "127.0.0.1:8080", "error", errors.New("file a.b: not found"), "n", 3,
		"address", "[::1]:80", "procedure", "/parley.auth.v1.AuthService/Login")

	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	require.Equal(t, "127.0.0.1:8080", line["listen"])
	require.Equal(t, "file a.b: not found", line["error"])
	require.InDelta(t, 3, line["n"], 0)
	require.Equal(t, "auth", line["service"])
	require.Equal(t, "/parley.auth.v1.AuthService/Login", line["procedure"])
}

func TestLevel(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := telemetry.NewLogger(telemetry.Config{LogLevel: slog.LevelWarn, LogOutput: &out})
	log.Info("quiet")
	require.Empty(t, out.String())
}

// Not parallel: it installs the providers of the process.
func TestSetup(t *testing.T) { //nolint:paralleltest // see above
	var out bytes.Buffer
	tel, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "parley", Version: "1", LogOutput: &out, SampleRatio: 0.01})
	require.NoError(t, err)
	defer func() { require.NoError(t, tel.Shutdown(context.WithoutCancel(t.Context()))) }()

	t.Run("log lines carry the trace id", func(t *testing.T) {
		ctx, span := otel.Tracer("test").Start(t.Context(), "call")
		defer span.End()
		tel.Log.With("a", 1).WithGroup("g").InfoContext(ctx, "hello")
		require.Contains(t, out.String(), span.SpanContext().TraceID().String())
	})

	t.Run("services in one process do not collide", func(t *testing.T) {
		for _, service := range []string{"auth", "user"} {
			// Each service makes the same instrument again, as the runtime does.
			counter, err := otel.Meter("github.com/parleychat/parley/pkg/outbox").Int64Counter("outbox_published")
			require.NoError(t, err)
			counter.Add(t.Context(), 1, metric.WithAttributes(attribute.String("service", service)))
		}
		rec := httptest.NewRecorder()
		tel.MetricsHandler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
		require.Equal(t, 200, rec.Code)
		require.Contains(t, rec.Body.String(), `outbox_published_total{service="auth"} 1`)
		require.Contains(t, rec.Body.String(), `outbox_published_total{service="user"} 1`)
		require.Contains(t, rec.Body.String(), "go_goroutines")
	})
}
