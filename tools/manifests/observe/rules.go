package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// RuleFiles are the files with rules, sorted.
func RuleFiles(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "rules", "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	slices.Sort(files)
	return files, nil
}

// Operator gives the rules as the custom resource of the Prometheus operator.
func Operator(dir string) ([]byte, error) {
	files, err := RuleFiles(dir)
	if err != nil {
		return nil, err
	}
	var groups []any
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read rules: %w", err)
		}
		var content struct {
			Groups []any `json:"groups"`
		}
		if err := yaml.UnmarshalStrict(raw, &content); err != nil {
			return nil, fmt.Errorf("parse %s: %w", file, err)
		}
		groups = append(groups, content.Groups...)
	}
	resource := map[string]any{
		"apiVersion": "monitoring.coreos.com/v1",
		"kind":       "PrometheusRule",
		"metadata":   map[string]any{"name": "parley"},
		"spec":       map[string]any{"groups": groups},
	}
	body, err := yaml.Marshal(resource)
	if err != nil {
		return nil, fmt.Errorf("write rules: %w", err)
	}
	return []byte(strings.Join([]string{"# Made of ../rules by `make dashboards`; do not edit.", string(body)}, "\n")), nil
}
