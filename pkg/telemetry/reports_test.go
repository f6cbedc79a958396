package telemetry_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"

	"github.com/parleychat/parley/pkg/telemetry"
)

// collector is a Sentry-compatible server: it takes envelopes.
type collector struct {
	*httptest.Server

	mu     sync.Mutex
	events []map[string]any
	raw    bytes.Buffer
	auth   string
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			zipped, err := gzip.NewReader(body)
			if err != nil {
				t.Error(err)
				return
			}
			body = zipped
		}
		all, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		c.take(t, r, all)
	}))
	t.Cleanup(c.Close)
	return c
}

// take reads an envelope: a line for itself, then a header and a payload for each
// item (https://develop.sentry.dev/sdk/data-model/envelopes).
func (c *collector) take(t *testing.T, r *http.Request, envelope []byte) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(envelope)
	c.auth = r.Header.Get("X-Sentry-Auth")
	lines := bufio.NewScanner(bytes.NewReader(envelope))
	lines.Buffer(nil, 1<<20)
	lines.Scan()
	for lines.Scan() {
		var header struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(lines.Bytes(), &header); err != nil || !lines.Scan() {
			continue
		}
		var event map[string]any
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Error(err)
		}
		if header.Type == "event" {
			c.events = append(c.events, event)
		}
	}
}

func (c *collector) dsn() string {
	return strings.Replace(c.URL, "http://", "http://public@", 1) + "/42"
}

func (c *collector) all() ([]map[string]any, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events, c.raw.String()
}

// reporting sets a process up that reports to c, and gives the end that delivers.
func reporting(t *testing.T, c *collector) (log *slog.Logger, flush func()) {
	t.Helper()
	tel, err := telemetry.Setup(t.Context(), telemetry.Config{
		Service: "auth", Version: "abc", LogOutput: io.Discard, SampleRatio: 1,
		Reports: telemetry.Reports{DSN: c.dsn(), Environment: "staging"},
	})
	require.NoError(t, err)
	return tel.Log, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
		defer cancel()
		require.NoError(t, tel.Shutdown(ctx))
	}
}

//nolint:paralleltest // Setup installs the providers of the process
func TestErrorsAreReported(t *testing.T) {
	c := newCollector(t)
	log, flush := reporting(t, c)
	ctx, span := otel.Tracer("test").Start(t.Context(), "call")
	log = log.With("service", "auth")
	log.InfoContext(ctx, "not this")
	log.WarnContext(ctx, "nor this", "error", errors.New("transient"))
	log.ErrorContext(ctx, "call failed", "procedure", "/parley.auth.v1.AuthService/Login", "attempts", 3,
		"error", fmt.Errorf("insert session: %w", errors.New("disk full")))
	span.End()
	log.Error("panic in a call", "panic", "index out of range [3]", "stack", "goroutine 7 [running]:\nmain.f()")
	flush()

	events, _ := c.all()
	require.Len(t, events, 2)
	first := events[0]
	require.Equal(t, "error", first["level"])
	require.Equal(t, "staging", first["environment"])
	require.Equal(t, "abc", first["release"])
	require.Equal(t, map[string]any{
		"service": "auth", "procedure": "/parley.auth.v1.AuthService/Login", "trace_id": span.SpanContext().TraceID().String(),
	}, first["tags"])
	exception := at(t, first, "exception", 0)
	require.Equal(t, "call failed", exception["type"])
	require.Equal(t, "insert session: disk full", exception["value"])
	frame := at(t, at(t, first, "exception", 0)["stacktrace"], "frames", 0)
	require.Equal(t, "TestErrorsAreReported", frame["function"])
	require.Equal(t, "3", in(t, in(t, first, "contexts"), "log")["attempts"])

	require.Equal(t, "fatal", events[1]["level"])
	require.Contains(t, in(t, in(t, events[1], "contexts"), "log")["stack"], "main.f()")
	require.Contains(t, c.auth, "sentry_key=public")
}

// at and in walk decoded JSON.
func at(t *testing.T, from any, key string, i int) map[string]any {
	t.Helper()
	object, ok := from.(map[string]any)
	require.True(t, ok)
	list, ok := object[key].([]any)
	require.True(t, ok, "%s is no list in %v", key, object)
	require.Greater(t, len(list), i)
	out, ok := list[i].(map[string]any)
	require.True(t, ok)
	return out
}

func in(t *testing.T, from map[string]any, key string) map[string]any {
	t.Helper()
	out, ok := from[key].(map[string]any)
	require.True(t, ok, "%s is no object in %v", key, from)
	return out
}

//nolint:paralleltest // as above
func TestReportsHoldNothingPersonal(t *testing.T) {
	c := newCollector(t)
	log, flush := reporting(t, c)
	person := "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
	others := []error{
		errors.New("read tcp [2001:db8::1]:8080->[2001:db8:7::42]:55123: i/o timeout"), errors.New("dial ::ffff:198.51.100.4: no route at 12:34:56"),
		errors.New("link fe80::42%eth0 and 2001:db8:1:2:3:4:5:6, both"), errors.New("person " + strings.ReplaceAll(person, "-", "")),
		errors.New(`failed to encode args[2]: unable to encode "hunter2" into binary format for uuid (OID 2950)`),
	}
	log.With("service", "auth", "refresh_token", "hunter2", "username", "hunter2").WithGroup("request").With("text", "hunter2").
		Error("lookup of hunter2@example.org failed", "error", errors.New("person "+person+" from 203.0.113.7 with "+jwt),
			"user", person, "anything", "hunter2", "password", "hunter2", "body", map[string]string{"text": "hunter2"},
			slog.Group("secret", slog.String("error", "hunter2")))
	for _, err := range others {
		log.Error("failed", "service", "auth", "error", err)
	}
	flush()

	events, raw := c.all()
	require.Len(t, events, 1+len(others))
	for _, leak := range []string{
		"hunter2", person, strings.ReplaceAll(person, "-", ""), "203.0.113.7", jwt, "example.org",
		"2001:db8", "198.51.100.4", "fe80::42", "eth0",
	} {
		require.NotContains(t, raw, leak)
	}
	require.Contains(t, raw, "12:34:56", "a time is no address")
	require.Empty(t, events[0]["user"])
	require.NotContains(t, events[0], "request")
	require.NotContains(t, events[0], "modules")
	require.Equal(t, "auth", in(t, events[0], "tags")["service"], "what is harmless stays")
}

//nolint:paralleltest // as above
func TestReportsAreBounded(t *testing.T) {
	c := newCollector(t)
	log, flush := reporting(t, c)
	for range 500 {
		log.Error("the same", "error", errors.New("again"))
	}
	for i := range 500 {
		log.Error("different", "error", fmt.Errorf("number %d", i))
	}
	flush()
	events, _ := c.all()
	require.GreaterOrEqual(t, len(events), 2)
	require.LessOrEqual(t, len(events), 32, "one of the same, and no more than a burst of others")
}

//nolint:paralleltest // as above
func TestASlowCollectorHoldsNobodyUp(t *testing.T) {
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer slow.Close()
	defer close(release)
	log, flush := reporting(t, &collector{Server: slow})
	start := time.Now()
	for i := range 100 {
		log.Error("different", "error", fmt.Errorf("number %d", i))
	}
	require.Less(t, time.Since(start), 3*time.Second)
	release <- struct{}{}
	_ = flush // what is held is lost with the process
}

//nolint:paralleltest // as above
func TestABadDSNStopsTheStartAndIsNotShown(t *testing.T) {
	_, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "auth", Reports: telemetry.Reports{DSN: "hunter2"}})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}
