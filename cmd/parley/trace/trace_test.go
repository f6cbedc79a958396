package trace_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/trace"
	"github.com/parleychat/parley/pkg/telemetry/traces"
)

// process is the admin port of one that has spans.
func process(t *testing.T, spans ...traces.Span) (url string, raised chan string) {
	t.Helper()
	raised = make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			raised <- r.URL.RawQuery
			return
		}
		if err := json.NewEncoder(w).Encode(traces.Group(spans)); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, raised
}

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := trace.Command()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&bytes.Buffer{})
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestProcessesMakeOnePicture(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	gateway, _ := process(t,
		traces.Span{TraceID: "t1", ID: "1", Name: "SendMessage", Service: "gateway", Start: start, Duration: 9 * time.Millisecond},
		traces.Span{TraceID: "t1", ID: "4", Parent: "3", Name: "deliver", Service: "gateway", Start: start.Add(8 * time.Millisecond)},
		traces.Span{TraceID: "t2", ID: "9", Name: "Sync", Service: "gateway", Start: start.Add(time.Hour)})
	messaging, _ := process(t,
		traces.Span{TraceID: "t1", ID: "2", Parent: "1", Name: "SendMessage", Service: "messaging", Start: start.Add(time.Millisecond), Duration: 6 * time.Millisecond},
		traces.Span{TraceID: "t1", ID: "3", Parent: "2", Name: "push", Start: start.Add(6 * time.Millisecond), Duration: time.Millisecond})
	out, err := run(t, "--admin", gateway+","+messaging)
	require.NoError(t, err)
	//nolint:dupword // one step calls the next
	require.Regexp(t, `(?s)^t1 .* 4 steps  gateway   SendMessage\n\ntrace t1   9\.00ms   4 steps`+
		`.*gateway    SendMessage.*messaging    SendMessage.*messaging      push.*gateway          deliver`, out)
	require.NotContains(t, out, "Sync", "only what has the name")

	out, err = run(t, "--admin", gateway+","+messaging, "--name", "", "--last", "1", "--json")
	require.NoError(t, err)
	var list []traces.Trace
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	require.Len(t, list, 1)
	require.Equal(t, "t2", list[0].ID, "the newest")
}

func TestSamplingIsRaisedEverywhere(t *testing.T) {
	t.Parallel()
	one, raisedOne := process(t)
	two, raisedTwo := process(t)
	out, err := run(t, "--admin", one+","+two, "--sample", "10ms")
	require.NoError(t, err)
	require.Contains(t, out, "no such trace")
	require.Equal(t, "ratio=1&for=10ms", <-raisedOne)
	require.Equal(t, "ratio=1&for=10ms", <-raisedTwo)
}

func TestWhatCannotBeAsked(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no process":  {"--admin", "http://127.0.0.1:1"},
		"no data":     {"--data", t.TempDir()},
		"none listed": {"--admin", "http://127.0.0.1:1", "--last", "0"},
		"too long":    {"--admin", "http://127.0.0.1:1", "--sample", "24h"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := run(t, args...)
			require.Error(t, err)
		})
	}
}
