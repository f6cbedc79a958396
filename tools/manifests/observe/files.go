package observe

import "path/filepath"

// Files is everything that is made, by its path below deploy/observability (dir,
// where the rules are).
func Files(dir string) (map[string][]byte, error) {
	rules, err := Operator(dir)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{filepath.Join("operator", "rules.yaml"): rules}
	for _, d := range Dashboards() {
		body, err := d.JSON()
		if err != nil {
			return nil, err
		}
		files[filepath.Join("dashboards", d.Name+".json")] = body
	}
	return files, nil
}
