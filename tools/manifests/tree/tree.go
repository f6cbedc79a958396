// Package tree knows where things are in this repository.
package tree

import (
	"fmt"
	"os"
	"path/filepath"
)

// Domains lists the domains, sorted: the folders of services/ that have a program.
func Domains(root string) ([]string, error) {
	programs, err := filepath.Glob(filepath.Join(root, "services", "*", "cmd", "*", "main.go"))
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	var domains []string
	for _, p := range programs {
		name := filepath.Base(filepath.Dir(p))
		if filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(p)))) == name {
			domains = append(domains, name)
		}
	}
	if len(domains) == 0 {
		return nil, fmt.Errorf("%w: no services in %s", os.ErrNotExist, root)
	}
	return domains, nil
}
