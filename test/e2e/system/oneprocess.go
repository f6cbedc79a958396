package system

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// startOneProcess starts `parley dev` on fixed ports, with a data folder of its own.
func (s *System) startOneProcess(o Options) {
	s.t.Helper()
	dir := folder(s.t)
	gateway, admin := address(s.t), address(s.t)
	s.Gateways = []string{gateway}
	s.data = filepath.Join(dir, "data")
	parley := newProcess(s.t, dir, "parley", program(s.t, "parley"), []string{
		"dev", "--listen", gateway, "--admin-listen", admin, "--data", s.data, "--json", "--verbose",
	}, tuning(o), admin)
	parley.pin(o.CPU)
	parley.tells = true
	s.processes = []*Process{parley}
	// An orderly end first: it also ends the database of a test that has not failed
	// without a trace in the folder that is removed next.
	s.t.Cleanup(parley.Stop)
	parley.Start()
}

// BusURL is where NATS of a system in one process listens.
func (s *System) BusURL() string {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.data, "running.json"))
	if err != nil {
		s.t.Fatalf("read where everything is: %v", err)
	}
	var ready struct {
		NATS string `json:"nats"`
	}
	if err := json.Unmarshal(raw, &ready); err != nil || ready.NATS == "" {
		s.t.Fatalf("no place of NATS in %s: %v", raw, err)
	}
	return ready.NATS
}
