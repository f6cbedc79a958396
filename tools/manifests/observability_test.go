package manifests_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/parleychat/parley/tools/manifests/observe"
)

const observability = root + "/deploy/observability"

// ofTheTarget are the labels that Prometheus gives each series itself, and that of
// its own metric ALERTS.
var ofTheTarget = []string{"instance", "pod", "namespace"}

// known gives the labels of every series: those of docs/metrics.md and those that
// the rules record.
func known(t *testing.T, rules []rulefmt.Rule) map[string][]string {
	t.Helper()
	metrics, err := observe.Metrics(root + "/docs/metrics.md")
	require.NoError(t, err)
	series := observe.Series(metrics)
	series["ALERTS"] = []string{"alertname", "alertstate", "severity"}
	for _, r := range rules {
		if r.Record != "" {
			series[r.Record] = resultLabels(t, r.Expr)
		}
	}
	return series
}

func parse(t *testing.T, expr string) parser.Expr {
	t.Helper()
	tree, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	require.NoError(t, err, expr)
	return tree
}

// resultLabels are the labels that an expression keeps: those of its aggregations,
// without the one that histogram_quantile takes.
func resultLabels(t *testing.T, expr string) []string {
	t.Helper()
	var labels []string
	parser.Inspect(parse(t, expr), func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			labels = append(labels, a.Grouping...)
		}
		return nil
	})
	return slices.DeleteFunc(labels, func(l string) bool { return l == "le" })
}

// faults tells what an expression names that does not exist.
func faults(t *testing.T, expr string, series map[string][]string) []string {
	t.Helper()
	var out []string
	parser.Inspect(parse(t, expr), func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			labels, exists := series[n.Name]
			if !exists {
				out = append(out, "no metric "+n.Name)
				return nil
			}
			for _, m := range n.LabelMatchers {
				if m.Name != "__name__" && !slices.Contains(slices.Concat(labels, ofTheTarget), m.Name) {
					out = append(out, fmt.Sprintf("%s has no label %s", n.Name, m.Name))
				}
			}
		case *parser.AggregateExpr:
			for _, label := range n.Grouping {
				parser.Inspect(n.Expr, func(inner parser.Node, _ []parser.Node) error {
					if v, ok := inner.(*parser.VectorSelector); ok && !slices.Contains(slices.Concat(series[v.Name], ofTheTarget), label) {
						out = append(out, fmt.Sprintf("%s has no label %s to sum by", v.Name, label))
					}
					return nil
				})
			}
		}
		return nil
	})
	return out
}

// readRules parses every file as Prometheus does, templates of annotations included.
func readRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	files, err := observe.RuleFiles(observability)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var rules []rulefmt.Rule
	for _, file := range files {
		groups, errs := rulefmt.ParseFile(file, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
		require.Empty(t, errs, file)
		for _, group := range groups.Groups {
			rules = append(rules, group.Rules...)
		}
	}
	return rules
}

func TestRulesNameWhatExists(t *testing.T) {
	t.Parallel()
	rules := readRules(t)
	series := known(t, rules)
	for _, r := range rules {
		assert.Empty(t, faults(t, r.Expr, series), "%s%s: %s", r.Alert, r.Record, r.Expr)
		kept := slices.Concat(resultLabels(t, r.Expr), ofTheTarget)
		for _, text := range r.Annotations {
			for _, use := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
				assert.Contains(t, kept, use[1], "%s: its text names a label that is summed away", r.Alert)
			}
		}
	}
}

// TestTheCheckSeesFaults holds the checker itself to its word.
func TestTheCheckSeesFaults(t *testing.T) {
	t.Parallel()
	series := map[string][]string{"requests_total": {"code"}}
	for expr, want := range map[string]string{
		"rate(request_total[5m])":                    "no metric request_total",
		`sum(rate(requests_total{status="x"}[5m]))`:  "requests_total has no label status",
		"sum by (status) (rate(requests_total[5m]))": "requests_total has no label status to sum by",
	} {
		assert.Equal(t, []string{want}, faults(t, expr, series))
	}
	assert.Empty(t, faults(t, `sum by (code, instance) (rate(requests_total{code!="ok"}[5m]))`, series))
}

func TestEveryAlertHasItsRunbook(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(root + "/docs/runbook.md")
	require.NoError(t, err)
	sections, used := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(raw), -1) {
		sections[m[1]] = true
	}
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		assert.True(t, sections[r.Alert], "docs/runbook.md has no section %s", r.Alert)
		used[r.Alert] = true
		assert.Equal(t, "docs/runbook.md#"+strings.ToLower(r.Alert), r.Annotations["runbook"], r.Alert)
		assert.NotEmpty(t, r.Annotations["summary"], r.Alert)
		assert.Contains(t, []string{"page", "ticket"}, r.Labels["severity"], r.Alert)
		assert.True(t, strings.HasPrefix(r.Alert, "Parley"), r.Alert)
	}
	assert.Equal(t, used, sections, "sections of alerts that do not exist")
}

func TestDashboardsNameWhatExists(t *testing.T) {
	t.Parallel()
	series := known(t, readRules(t))
	shown := map[string]bool{}
	for _, d := range observe.Dashboards() {
		for _, row := range d.Rows {
			for _, p := range row.Panels {
				for _, q := range p.Queries {
					assert.Empty(t, faults(t, q.Expr, series), "%s / %s", d.Title, p.Title)
					parser.Inspect(parse(t, q.Expr), func(node parser.Node, _ []parser.Node) error {
						if v, ok := node.(*parser.VectorSelector); ok {
							shown[v.Name] = true
						}
						return nil
					})
					kept := slices.Concat(resultLabels(t, q.Expr), ofTheTarget, seriesOf(t, q.Expr, series))
					for _, use := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(q.Name, -1) {
						assert.Contains(t, kept, use[1], "%s / %s: the name of its line", d.Title, p.Title)
					}
				}
			}
		}
	}
	for name, labels := range series {
		if strings.HasPrefix(name, "parley:") && !strings.Contains(name, "ratio30m") && !strings.Contains(name, "ratio6h") {
			assert.True(t, shown[name], "%s (%v) is recorded and never looked at", name, labels)
		}
	}
}

// seriesOf are the labels of a metric that is shown as it is, without a sum.
func seriesOf(t *testing.T, expr string, series map[string][]string) []string {
	t.Helper()
	if v, ok := parse(t, expr).(*parser.VectorSelector); ok {
		return series[v.Name]
	}
	return nil
}

func TestWhatIsMadeIsUpToDate(t *testing.T) {
	t.Parallel()
	files, err := observe.Files(observability)
	require.NoError(t, err)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(observability, name))
		require.NoError(t, err, "run `make dashboards`")
		assert.Equal(t, string(want), string(got), "%s has drifted: run `make dashboards`", name)
	}
	committed, err := filepath.Glob(filepath.Join(observability, "dashboards", "*.json"))
	require.NoError(t, err)
	assert.Len(t, committed, len(observe.Dashboards()), "a dashboard that nobody makes")
}

// TestTheComponentBuilds puts the component over the production overlay, and
// decodes the operator's resources strictly.
func TestTheComponentBuilds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(filepath.Join(root, "deploy"))))
	overlay := filepath.Join(dir, "overlay")
	require.NoError(t, os.Mkdir(overlay, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(
		"namespace: parley\nresources: [../deploy/k8s/base]\ncomponents: [../deploy/observability]\n"), 0o600))
	options := krusty.MakeDefaultOptions()
	result, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), overlay)
	require.NoError(t, err)
	found := map[string]bool{}
	pods := map[string]map[string]string{}
	for _, resource := range result.Resources() {
		raw, err := resource.AsYAML()
		require.NoError(t, err)
		switch resource.GetKind() {
		case "PodMonitor":
			var monitor monitoringv1.PodMonitor
			require.NoError(t, yaml.UnmarshalStrict(raw, &monitor))
			require.Equal(t, "admin", *monitor.Spec.PodMetricsEndpoints[0].Port)
			require.True(t, monitor.Spec.PodMetricsEndpoints[0].HonorLabels)
		case "PrometheusRule":
			var rule monitoringv1.PrometheusRule
			require.NoError(t, yaml.UnmarshalStrict(raw, &rule))
			require.NotEmpty(t, rule.Spec.Groups)
		case "Deployment":
			pods[resource.GetName()] = templateLabels(t, raw)
			continue
		case "ConfigMap":
			if resource.GetName() != "parley-dashboards" {
				continue
			}
			require.Len(t, resource.GetDataMap(), len(observe.Dashboards()), "every dashboard is in the component")
			require.Equal(t, "1", resource.GetLabels()["grafana_dashboard"])
		default:
			continue
		}
		require.Equal(t, "parley", resource.GetNamespace())
		found[resource.GetKind()] = true
	}
	require.Len(t, found, 3)
	require.NotEmpty(t, pods)
	for name, labels := range pods {
		require.Equal(t, "parley", labels["app.kubernetes.io/part-of"], name)
		require.Contains(t, []string{"service", "edge"}, labels["app.kubernetes.io/component"], "%s is not scraped", name)
	}
}

func templateLabels(t *testing.T, raw []byte) map[string]string {
	t.Helper()
	var d struct {
		Spec struct {
			Template struct {
				Metadata struct {
					Labels map[string]string `json:"labels"`
				} `json:"metadata"`
			} `json:"template"`
		} `json:"spec"`
	}
	require.NoError(t, yaml.Unmarshal(raw, &d))
	return d.Spec.Template.Metadata.Labels
}
