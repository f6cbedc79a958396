package observe

import (
	"encoding/json"
	"fmt"
)

// Dashboard is one page of Grafana, as we describe it.
type Dashboard struct {
	// Name is the file's name and the page's id.
	Name, Title string
	Rows        []Row
}

// Row is a heading with panels beneath.
type Row struct {
	Title  string
	Panels []Panel
}

// Panel shows some queries over time, or, if Single, the present value.
type Panel struct {
	Title string
	// Unit is one of Grafana's: s, short, percentunit, bytes, reqps, ops.
	Unit    string
	Single  bool
	Stacked bool
	// Limit is the value from which the panel is red; 0: none.
	Limit   float64
	Queries []Query
}

// Query is an expression of PromQL with the name of its line.
type Query struct{ Expr, Name string }

// Sizes of a page, in Grafana's grid of 24 columns.
const (
	pageWidth, panelHeight, panelsPerRow = 24, 8, 3
	singleHeight                         = 4
)

// JSON gives the dashboard in Grafana's format (schema 39, Grafana 10 and later).
func (d Dashboard) JSON() ([]byte, error) {
	var panels []any
	id, y := 1, 0
	for _, row := range d.Rows {
		panels = append(panels, map[string]any{
			"id": id, "type": "row", "title": row.Title, "collapsed": false, "panels": []any{},
			"gridPos": map[string]int{"x": 0, "y": y, "w": pageWidth, "h": 1},
		})
		id, y = id+1, y+1
		x, height := 0, 0
		for _, p := range row.Panels {
			width, h := pageWidth/panelsPerRow, panelHeight
			if p.Single {
				width, h = pageWidth/6, singleHeight
			}
			if x+width > pageWidth {
				x, y, height = 0, y+height, 0
			}
			panels = append(panels, p.grafana(id, x, y, width, h))
			id, x, height = id+1, x+width, max(height, h)
		}
		y += height
	}
	body, err := json.MarshalIndent(map[string]any{
		"uid": "parley-" + d.Name, "title": "Parley / " + d.Title, "tags": []string{"parley"},
		"schemaVersion": 39, "version": 1, "editable": false, "graphTooltip": 1, "refresh": "30s",
		"time": map[string]string{"from": "now-3h", "to": "now"}, "timezone": "browser",
		"templating": map[string]any{"list": []any{map[string]any{
			"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus",
		}}},
		"annotations": map[string]any{"list": []any{map[string]any{
			"name": "Alerts", "enable": true, "iconColor": "red", "datasource": source(),
			"expr": `ALERTS{alertname=~"Parley.*",alertstate="firing",severity="page"}`, "titleFormat": "{{alertname}}",
		}}},
		"links":  []any{map[string]any{"type": "dashboards", "tags": []string{"parley"}, "title": "Parley", "asDropdown": true, "keepTime": true}},
		"panels": panels,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write dashboard %s: %w", d.Name, err)
	}
	return append(body, '\n'), nil
}

func source() map[string]string {
	return map[string]string{"type": "prometheus", "uid": "${datasource}"}
}

func (p Panel) grafana(id, x, y, w, h int) map[string]any {
	targets := make([]any, 0, len(p.Queries))
	for i, q := range p.Queries {
		targets = append(targets, map[string]any{
			"refId": string(rune('A' + i)), "datasource": source(), "expr": q.Expr, "legendFormat": q.Name, "instant": p.Single,
		})
	}
	steps := []any{map[string]any{"color": "green", "value": nil}}
	if p.Limit != 0 {
		steps = append(steps, map[string]any{"color": "red", "value": p.Limit})
	}
	defaults := map[string]any{
		"unit": p.Unit, "min": 0,
		"thresholds": map[string]any{"mode": "absolute", "steps": steps},
	}
	out := map[string]any{
		"id": id, "title": p.Title, "datasource": source(), "targets": targets,
		"gridPos":     map[string]int{"x": x, "y": y, "w": w, "h": h},
		"fieldConfig": map[string]any{"defaults": defaults, "overrides": []any{}},
	}
	if p.Single {
		out["type"] = "stat"
		out["options"] = map[string]any{"colorMode": "value", "graphMode": "none", "reduceOptions": map[string]any{"calcs": []string{"lastNotNull"}}}
		return out
	}
	custom := map[string]any{"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
	if p.Stacked {
		custom["stacking"] = map[string]string{"mode": "normal"}
	}
	if p.Limit != 0 {
		custom["thresholdsStyle"] = map[string]string{"mode": "line"}
	}
	defaults["custom"] = custom
	out["type"] = "timeseries"
	out["options"] = map[string]any{
		"legend":  map[string]any{"displayMode": "list", "placement": "bottom"},
		"tooltip": map[string]any{"mode": "multi", "sort": "desc"},
	}
	return out
}
