// Command probe asks the services themselves. The tests of the manifests run it
// in the workspace, together with a generated list of all services:
//
//	probe settings   what each program makes of the environment on stdin
//	probe nats       whether each login may do what its program does, and no more
//
// It prints JSON. The tests do not link the services, so their module stays small.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/parleychat/parley/pkg/config"
	"github.com/parleychat/parley/pkg/service"
)

// field is what the tests want to know of a variable.
type field struct {
	Name             string
	Required, Secret bool
}

// program is the answer of settings for one program.
type program struct {
	Fields []field
	// Faults are what would stop its start.
	Faults string
}

func main() {
	var answer any
	err := fmt.Errorf("usage: probe settings|nats")
	switch {
	case len(os.Args) == 2 && os.Args[1] == "settings":
		answer, err = settings()
	case len(os.Args) == 2 && os.Args[1] == "nats":
		answer, err = logins(context.Background())
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// settings reads {program: {variable: value}} and loads each as the program does.
func settings() (map[string]program, error) {
	var environments map[string]map[string]string
	if err := json.NewDecoder(os.Stdin).Decode(&environments); err != nil {
		return nil, fmt.Errorf("read the environments: %w", err)
	}
	answer := map[string]program{}
	for name, structs := range programs() {
		var environ []string
		for variable, value := range environments[name] {
			environ = append(environ, variable+"="+value)
		}
		var p program
		var faults []error
		src := config.NewSource(service.Prefix(name), environ)
		for _, into := range structs {
			described, err := config.Describe(service.Prefix(name), into)
			if err != nil {
				return nil, fmt.Errorf("describe the settings of %s: %w", name, err)
			}
			for _, f := range described {
				p.Fields = append(p.Fields, field{f.Name, f.Required, f.Secret})
			}
			faults = append(faults, src.Load(into))
		}
		if err := errors.Join(append(faults, src.Unknown())...); err != nil {
			p.Faults = err.Error()
		}
		answer[name] = p
	}
	return answer, nil
}

// programs are the structs that each program fills from its environment.
func programs() map[string][]any {
	all := map[string][]any{"gateway": gatewaySettings()}
	for _, def := range definitions() {
		all[def.Name] = []any{&service.Config{}}
		if def.Settings != nil {
			all[def.Name] = append(all[def.Name], def.Settings)
		}
	}
	return all
}
