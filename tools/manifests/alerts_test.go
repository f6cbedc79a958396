package manifests_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/tools/manifests/observe"
)

// suffix is what Prometheus adds to the name of a histogram.
var suffix = regexp.MustCompile(`_(bucket|sum|count)$`)

// TestEveryPartIsMissed: while one part is ready, the rules miss each other one.
func TestEveryPartIsMissed(t *testing.T) {
	t.Parallel()
	missed := map[string]string{}
	for _, r := range readRules(t) {
		if r.Alert == "ParleyDown" {
			missed[r.Labels["part"]] = r.Expr
		}
	}
	parts := append(domains(t), "gateway")
	assert.Len(t, missed, len(parts), "a ParleyDown for what is no part")
	for _, part := range parts {
		assert.Equal(t, `absent(process_ready == 1 and on (instance, pod) target_info{service_name="`+part+`"})`, missed[part],
			"deploy/observability/rules/parts.yaml: ParleyDown with the label part: %s", part)
	}
}

// TestAlertsOnWhatStandsStill: a gauge that is set by work that may have stopped
// tells a point in time, and the rule takes the present from Prometheus.
func TestAlertsOnWhatStandsStill(t *testing.T) {
	t.Parallel()
	for _, r := range readRules(t) {
		if strings.Contains(r.Expr, "_timestamp_seconds") {
			assert.Contains(t, r.Expr, "time()", r.Alert)
		}
		assert.NotContains(t, r.Expr, "runway", "%s: it does not grow shorter when nobody measures it", r.Alert)
	}
}

// TestNoTwoAlertsAskTheSame: one fault opens one ticket.
func TestNoTwoAlertsAskTheSame(t *testing.T) {
	t.Parallel()
	asked := map[string]string{}
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		text := parse(t, r.Expr).String()
		assert.Empty(t, asked[text], "%s asks the same", r.Alert)
		asked[text] = r.Alert
	}
}

// TestAlertsUseWhatTheProductTells: a metric that appears only when something
// happens is not held against the product, so no alert may trust in it. Nor would
// its first step be a rise.
func TestAlertsUseWhatTheProductTells(t *testing.T) {
	t.Parallel()
	metrics, err := observe.Metrics(root + "/docs/metrics.md")
	require.NoError(t, err)
	rules := readRules(t)
	recorded := map[string]rulefmt.Rule{}
	for _, r := range rules {
		recorded[r.Record] = r
	}
	for _, r := range rules {
		parser.Inspect(parse(t, r.Expr), func(node parser.Node, _ []parser.Node) error {
			if v, ok := node.(*parser.VectorSelector); ok && recorded[v.Name].Expr == "" {
				base := suffix.ReplaceAllString(v.Name, "")
				assert.False(t, metrics[v.Name].Rare || metrics[base].Rare, "%s%s uses %s*: begin it at 0", r.Alert, r.Record, v.Name)
			}
			return nil
		})
	}
}

// openLabels have values that are not listed: those of other people's lists, and
// numbers.
var openLabels = []string{"code", "rpc_response_status_code", "quantile", "cache"}

// unknownValues tells which values of labels an expression looks for that nobody
// tells.
func unknownValues(t *testing.T, expr string, values map[[2]string][]string) []string {
	t.Helper()
	var out []string
	parser.Inspect(parse(t, expr), func(node parser.Node, _ []parser.Node) error {
		v, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		for _, m := range v.LabelMatchers {
			if m.Name == "__name__" || slices.Contains(openLabels, m.Name) {
				continue
			}
			for _, value := range strings.Split(m.Value, "|") {
				if !slices.Contains(values[[2]string{v.Name, m.Name}], value) {
					out = append(out, v.Name+" "+m.Name+": "+value)
				}
			}
		}
		return nil
	})
	return out
}

// TestRulesLookForValuesThatExist: a renamed outcome would end its alert, and
// nobody would hear of it.
func TestRulesLookForValuesThatExist(t *testing.T) {
	t.Parallel()
	values, err := observe.Values(root + "/docs/metrics.md")
	require.NoError(t, err)
	for _, r := range readRules(t) {
		assert.Empty(t, unknownValues(t, r.Expr, values), "docs/metrics.md lists no such value: %s%s", r.Alert, r.Record)
	}
	for _, d := range observe.Dashboards() {
		for _, row := range d.Rows {
			for _, p := range row.Panels {
				for _, q := range p.Queries {
					assert.Empty(t, unknownValues(t, q.Expr, values), "docs/metrics.md lists no such value: %s / %s", d.Title, p.Title)
				}
			}
		}
	}
	assert.Equal(t, []string{"jobs outcome: faild"}, unknownValues(t, `jobs{outcome=~"done|faild",code="x"}`, map[[2]string][]string{{"jobs", "outcome"}: {"done"}}),
		"the check itself")
}
