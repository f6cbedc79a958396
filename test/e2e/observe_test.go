package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// admin asks an admin port.
func admin(t require.TestingT, method, url string) string {
	req, err := http.NewRequest(method, url, nil)
	require.NoError(t, err)
	res, err := web.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s %s: %s", method, url, body)
	return string(body)
}

// sampleEverything has every process trace every call for a minute.
func sampleEverything(t *testing.T, sys *system.System) {
	t.Helper()
	for _, p := range sys.Processes() {
		admin(t, http.MethodPost, p.Admin()+"/debug/traces?ratio=1&for=60s")
	}
}

// step is a span as the admin port tells it.
type step struct {
	Trace      string            `json:"trace_id"`
	ID         string            `json:"span_id"`
	Parent     string            `json:"parent_id"`
	Name       string            `json:"name"`
	Service    string            `json:"service"`
	Attributes map[string]string `json:"attributes"`
}

// steps are the steps of one trace over all processes.
func steps(t require.TestingT, sys *system.System, trace string) []step {
	var all []step
	for _, p := range sys.Processes() {
		var list []struct {
			Spans []step `json:"spans"`
		}
		require.NoError(t, json.Unmarshal([]byte(admin(t, http.MethodGet, p.Admin()+"/debug/traces?format=json&trace="+trace)), &list))
		for _, one := range list {
			all = append(all, one.Spans...)
		}
	}
	return all
}

// aMessageIsOneTrace: the way of a message from the sender's socket through
// gateway, messaging, the group commit and the bus to the receivers' sockets is
// one trace, across all processes.
func aMessageIsOneTrace(t *testing.T, sys *system.System) {
	sampleEverything(t, sys)
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	phone, other := ada.connect(t, "phone", deviceOptions{gateway: 0}), ben.connect(t, "phone", deviceOptions{gateway: 1})
	talk := ada.talkTo(t, ben)
	before := traced(t, sys, "SendMessage")
	sent := phone.say(t, talk, "hello Ben")
	other.awaitHead(t, talk, sent.GetSeq(), soon)
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		var seen [][]step
		for _, id := range traced(t, sys, "SendMessage") {
			if slices.Contains(before, id) {
				continue
			}
			all := steps(t, sys, id)
			if complete(all) {
				return
			}
			seen = append(seen, all)
		}
		assert.Fail(t, "no trace of the message from socket to socket", "%v", seen)
	}, soon, poll, "the last step ends after the message has arrived")
}

// traced lists the traces with a step of that name.
func traced(t require.TestingT, sys *system.System, name string) []string {
	var ids []string
	for _, p := range sys.Processes() {
		var list []struct {
			ID string `json:"trace_id"`
		}
		require.NoError(t, json.Unmarshal([]byte(admin(t, http.MethodGet, p.Admin()+"/debug/traces?format=json&limit=1000&name="+name)), &list))
		for _, one := range list {
			ids = append(ids, one.ID)
		}
	}
	return ids
}

// complete tells whether the steps are the whole way, each caused by the one
// before it.
func complete(all []step) bool {
	const procedure = "parley.messaging.v1.MessagingService/SendMessage"
	find := func(parent, name, service string) (string, int) {
		id, n := "", 0
		for _, s := range all {
			if s.Name == name && s.Service == service && (parent == "any" || s.Parent == parent) {
				id = s.ID
				n++
			}
		}
		return id, n
	}
	call, _ := find("", procedure, "gateway")
	served, _ := find(call, procedure, "messaging")
	_, commits := find(served, "messaging.commit_batch", "messaging")
	pushed, _ := find(served, "push", "messaging")
	_, delivered := find(pushed, "deliver", "gateway")
	return call != "" && served != "" && commits > 0 && pushed != "" && delivered >= 2 // to the sender's devices too
}

var (
	listed  = regexp.MustCompile("^\\| `([a-z0-9_]+)`(\\*?) \\| ([a-z]+) \\| ?([a-z0-9_, ]*?) ?\\| .+ \\|$")
	sample  = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)(?:\{(.*)\})? `)
	label   = regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)",?`)
	valued  = regexp.MustCompile("^\\* `([a-z0-9_]+)`(\\*?) ([a-z_]+): (.+)$")
	suffix  = regexp.MustCompile(`_(bucket|sum|count)$`)
	library = regexp.MustCompile(`^(go|process|promhttp)_`)
)

// metricLine is a line of docs/metrics.md.
type metricLine struct {
	rare   bool
	kind   string
	labels string // sorted, separated by commas
}

func listedMetrics(t *testing.T) map[string]metricLine {
	t.Helper()
	raw, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	out := map[string]metricLine{}
	for line := range strings.Lines(string(raw)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		m := listed.FindStringSubmatch(strings.TrimSpace(line))
		require.NotNil(t, m, "not a line of a metric: %s", line)
		labels := strings.FieldsFunc(m[4], func(r rune) bool { return r == ',' || r == ' ' })
		slices.Sort(labels)
		out[m[1]] = metricLine{rare: m[2] == "*", kind: m[3], labels: strings.Join(labels, ",")}
	}
	require.NotEmpty(t, out)
	return out
}

// labelValues is a line about the values of a label.
type labelValues struct {
	rare bool // one appears when it happens
	all  []string
}

// listedValues are the lines of docs/metrics.md about values, by metric and label.
func listedValues(t *testing.T) map[[2]string]labelValues {
	t.Helper()
	raw, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	out := map[[2]string]labelValues{}
	for line := range strings.Lines(string(raw)) {
		if m := valued.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			out[[2]string{m[1], m[3]}] = labelValues{rare: m[2] == "*", all: strings.Split(m[4], ", ")}
		}
	}
	require.NotEmpty(t, out)
	return out
}

// told reads what a process tells: the kinds of the metrics, the sets of labels of
// their series, and the values of the labels, by metric and label.
func told(body string) (kinds map[string]string, labels map[string]map[string]bool, values map[[2]string][]string) {
	kinds, labels, values = map[string]string{}, map[string]map[string]bool{}, map[[2]string][]string{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			kinds[name] = kind
			continue
		}
		m := sample.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		name := m[1]
		if base := suffix.ReplaceAllString(name, ""); kinds[base] == "histogram" || kinds[base] == "summary" {
			name = base
		}
		var names []string
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				names = append(names, l[1])
				values[[2]string{name, l[1]}] = append(values[[2]string{name, l[1]}], l[2])
			}
		}
		slices.Sort(names)
		if labels[name] == nil {
			labels[name] = map[string]bool{}
		}
		labels[name][strings.Join(names, ",")] = true
	}
	return kinds, labels, values
}

// metricsAreListed: every metric that the product tells is in docs/metrics.md
// with its kind, its labels and the values of those that have few, and every one that is listed there is told. Rules
// and dashboards are checked against that list.
func metricsAreListed(t *testing.T, sys *system.System) {
	useEverything(t, sys)
	list, closed := listedMetrics(t), listedValues(t)
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		seen, values := map[string]bool{}, map[[2]string][]string{}
		for _, p := range sys.Processes() {
			kinds, labels, here := told(admin(t, http.MethodGet, p.Admin()+"/metrics"))
			for of, some := range here {
				values[of] = append(values[of], some...)
			}
			for name, kind := range kinds {
				line, known := list[name]
				if !known {
					assert.Regexp(t, library, name, "docs/metrics.md has no line for %s (%v)", name, labels[name])
					continue
				}
				seen[name] = true
				assert.Equal(t, line.kind, kind, name)
				for set := range labels[name] {
					if kind == "summary" && set == "" {
						continue // its sum and count
					}
					assert.Equal(t, line.labels, set, "the labels of %s", name)
				}
			}
		}
		for name, line := range list {
			assert.True(t, line.rare || seen[name], "%s is listed and nobody tells it", name)
		}
		for of, line := range closed {
			assert.Subset(t, line.all, values[of], "the values of %s", of)
			if !line.rare {
				assert.Subset(t, values[of], line.all, "the values of %s: listed and not told", of)
			}
		}
	}, 2*soon, poll, "some are asked for every 15 seconds only")
}

// useEverything does a little of all that people do, wrong things included.
func useEverything(t *testing.T, sys *system.System) {
	t.Helper()
	sampleEverything(t, sys)
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	phone := ada.connect(t, "phone", deviceOptions{gateway: 0})
	other := ben.connect(t, "phone", deviceOptions{gateway: 1})
	talk := ada.talkTo(t, ben)
	sent := phone.say(t, talk, "hello")
	other.awaitHead(t, talk, sent.GetSeq(), soon)
	_, err := ben.messaging(0).MarkRead(t.Context(), &messagingv1.MarkReadRequest{ConversationId: talk, Seq: sent.GetSeq()})
	require.NoError(t, err)
	_, err = ben.messaging(0).Sync(t.Context(), &messagingv1.SyncRequest{})
	require.NoError(t, err)
	conn := ada.socket(t, 0)
	require.NoError(t, conn.Close())
	code, _ := post(t, sys, "/parley.messaging.v1.MessagingService/Sync", "nonsense", object{})
	require.Equal(t, http.StatusUnauthorized, code)
	code, _ = post(t, sys, "/parley.messaging.v1.MessagingService/GetConversation", ada.tokens.GetAccessToken(),
		object{"conversationId": uuid.NewString()})
	require.Equal(t, http.StatusNotFound, code, fmt.Sprint(code))
}
