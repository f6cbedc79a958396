package telemetry_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/parleychat/parley/pkg/telemetry"
	"github.com/parleychat/parley/pkg/telemetry/traces"
)

// tracing sets a process up and gives its page of traces.
func tracing(t *testing.T, cfg telemetry.Config) http.Handler {
	t.Helper()
	cfg.LogOutput = io.Discard
	tel, err := telemetry.Setup(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tel.Shutdown(context.WithoutCancel(t.Context()))) })
	return tel.TracesHandler()
}

func ask(t *testing.T, page http.Handler, method, url string) (status int, body string) {
	t.Helper()
	rec := httptest.NewRecorder()
	page.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, url, nil))
	return rec.Code, rec.Body.String()
}

// story makes one trace: a call with a query that fails and work after the answer.
func story(t *testing.T) trace.TraceID {
	t.Helper()
	tracer := otel.Tracer("test")
	ctx, call := tracer.Start(t.Context(), "parley.user.v1.UserService/GetUser", trace.WithSpanKind(trace.SpanKindServer))
	inner, query := tracer.Start(ctx, "query\n\tusers", trace.WithAttributes(attribute.String("who", "hunter2@example.org"),
		attribute.String("long", strings.Repeat("x", 150)+" hunter2@example.org"),              // the end of what is shown lies in the address
		attribute.String("longer", "Bearer "+strings.Repeat("x", 490)+" hunter2@example.org"))) // and here that of what is kept
	query.SetStatus(codes.Error, "no such hunter2@example.org")
	query.RecordError(errors.New("ignored"))
	query.End()
	call.End()
	_, late := tracer.Start(inner, "push", trace.WithAttributes(attribute.String("service", "gateway")))
	late.End()
	return call.SpanContext().TraceID()
}

//nolint:paralleltest // Setup installs the providers of the process
func TestSampledTracesCanBeLookedAt(t *testing.T) {
	page := tracing(t, telemetry.Config{Service: "parley", SampleRatio: 1, KeepSpans: 10})
	id := story(t)
	status, body := ask(t, page, "GET", "/debug/traces?format=json")
	require.Equal(t, 200, status)
	var list []traces.Trace
	require.NoError(t, json.Unmarshal([]byte(body), &list))
	require.Len(t, list, 1)
	require.Equal(t, id.String(), list[0].ID)
	require.Len(t, list[0].Spans, 3)
	require.Equal(t, "user", list[0].Spans[0].Service, "the domain of the procedure")
	require.Equal(t, "user", list[0].Spans[1].Service, "that of the call which asked")
	require.Equal(t, "gateway", list[0].Spans[2].Service)
	require.Equal(t, list[0].Spans[1].ID, list[0].Spans[2].Parent)
	require.NotContains(t, body, "hunter2")

	_, text := ask(t, page, "GET", "/debug/traces")
	require.Contains(t, text, "3 steps  user      parley.user.v1.UserService/GetUser  ! no such [masked]")
	require.Contains(t, text, "    query users", "a child is indented, a name is one line")
	require.Contains(t, text, "      push")
	_, one := ask(t, page, "GET", "/debug/traces?trace="+id.String())
	require.True(t, strings.HasPrefix(one, "trace "+id.String()))
	_, none := ask(t, page, "GET", "/debug/traces?name=Elsewhere")
	require.Contains(t, none, "no such trace")

	for range 20 {
		story(t)
	}
	_, body = ask(t, page, "GET", "/debug/traces?format=json&limit=1000")
	require.NoError(t, json.Unmarshal([]byte(body), &list))
	spans := 0
	for _, one := range list {
		spans += len(one.Spans)
	}
	require.Equal(t, 10, spans, "no more are kept")
	for _, bad := range []string{"limit=0", "limit=x", "limit=1001"} {
		status, _ = ask(t, page, "GET", "/debug/traces?"+bad)
		require.Equal(t, 400, status, bad)
	}
}

//nolint:paralleltest // as above
func TestSamplingIsRaisedForAWhile(t *testing.T) {
	page := tracing(t, telemetry.Config{Service: "user", SampleRatio: 0})
	count := func() int {
		_, body := ask(t, page, "GET", "/debug/traces?format=json")
		var list []traces.Trace
		require.NoError(t, json.Unmarshal([]byte(body), &list))
		return len(list)
	}
	story(t)
	require.Zero(t, count(), "not sampled, not kept")
	status, _ := ask(t, page, "POST", "/debug/traces?ratio=1&for=1m")
	require.Equal(t, 200, status)
	story(t)
	require.Equal(t, 1, count())
	status, _ = ask(t, page, "POST", "/debug/traces?ratio=1&for=0s")
	require.Equal(t, 200, status)
	story(t)
	require.Equal(t, 1, count(), "the while is over")
	for _, bad := range []string{"ratio=2", "ratio=NaN", "ratio=-1", "for=1h", "for=x", "for=-1s"} {
		status, _ = ask(t, page, "POST", "/debug/traces?"+bad)
		require.Equal(t, 400, status, bad)
	}
}

//nolint:paralleltest // as above
func TestNoTracesAreKeptWhereNoneAreWanted(t *testing.T) {
	require.Nil(t, tracing(t, telemetry.Config{Service: "user", KeepSpans: telemetry.Keep(0)}))
}

func TestSpansOfSeveralProcessesMakeOneTrace(t *testing.T) {
	t.Parallel()
	gateway := []traces.Span{{TraceID: "t", ID: "1", Name: "call", Service: "gateway", Duration: 10}}
	service := []traces.Span{{TraceID: "t", ID: "2", Parent: "1", Name: "serve", Service: "user", Duration: 5}}
	list := traces.Group(gateway, service, service)
	require.Len(t, list, 1)
	require.Len(t, list[0].Spans, 2, "each once")
	var out strings.Builder
	require.NoError(t, traces.Write(&out, list[0]))
	require.Contains(t, out.String(), "  serve")
}

func TestBrokenTracesAreShownToo(t *testing.T) {
	t.Parallel()
	for name, spans := range map[string][]traces.Span{
		"circle":         {{TraceID: "t", ID: "1", Parent: "2", Name: "a"}, {TraceID: "t", ID: "2", Parent: "1", Name: "b"}},
		"own parent":     {{TraceID: "t", ID: "1", Parent: "1", Name: "a"}},
		"unknown parent": {{TraceID: "t", ID: "1", Parent: "9", Name: "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			require.NoError(t, traces.Write(&out, traces.Group(spans)[0]))
			require.Equal(t, 1+len(spans), strings.Count(out.String(), "\n"), out.String())
		})
	}
}
