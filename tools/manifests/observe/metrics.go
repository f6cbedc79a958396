// Package observe knows the metrics of the product and makes what looks at them:
// the Grafana dashboards, and the rules in the form of the Prometheus operator.
//
// docs/metrics.md is its only source for what exists; deploy/observability holds
// its output, which a test compares.
package observe

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Metric is one line of docs/metrics.md.
type Metric struct {
	Name   string
	Type   string // counter, gauge, histogram, summary
	Labels []string
	// Rare says that it appears only when it happens.
	Rare bool
	// Tells is the description.
	Tells string
}

var line = regexp.MustCompile("^\\| `([a-z0-9_]+)`(\\*?) \\| ([a-z]+) \\| ([a-z0-9_, ]*) \\| (.+) \\|$")

// Metrics reads docs/metrics.md, by name.
func Metrics(path string) (_ map[string]Metric, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of metrics: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	out := map[string]Metric{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if !strings.HasPrefix(lines.Text(), "| `") {
			continue
		}
		m := line.FindStringSubmatch(strings.ReplaceAll(lines.Text(), "| |", "|  |"))
		if m == nil {
			return nil, fmt.Errorf("not a line of a metric: %s", lines.Text())
		}
		if _, twice := out[m[1]]; twice {
			return nil, fmt.Errorf("metric %s is listed twice", m[1])
		}
		metric := Metric{Name: m[1], Rare: m[2] == "*", Type: m[3], Tells: m[5]}
		if labels := strings.TrimSpace(m[4]); labels != "" {
			metric.Labels = strings.Split(labels, ", ")
		}
		out[metric.Name] = metric
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no metrics in %s", path)
	}
	return out, nil
}

var values = regexp.MustCompile("^\\* `([a-z0-9_]+)`\\*? ([a-z_]+): (.+)$")

// Values reads from docs/metrics.md which values labels have, of those that have
// few, by metric and label.
func Values(path string) (map[[2]string][]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of metrics: %w", err)
	}
	out := map[[2]string][]string{}
	for text := range strings.Lines(string(raw)) {
		if m := values.FindStringSubmatch(strings.TrimSpace(text)); m != nil {
			out[[2]string{m[1], m[2]}] = strings.Split(m[3], ", ")
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no values of labels in %s", path)
	}
	return out, nil
}

// Series are the names under which Prometheus stores the metrics, with their
// labels: a histogram has three.
func Series(metrics map[string]Metric) map[string][]string {
	out := map[string][]string{}
	for _, m := range slices.Collect(maps.Values(metrics)) {
		switch m.Type {
		case "histogram":
			out[m.Name+"_bucket"] = append(slices.Clone(m.Labels), "le")
			out[m.Name+"_sum"], out[m.Name+"_count"] = m.Labels, m.Labels
		case "summary":
			out[m.Name] = m.Labels
			out[m.Name+"_sum"], out[m.Name+"_count"] = nil, nil
		default:
			out[m.Name] = m.Labels
		}
	}
	return out
}
