package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parleychat/parley/test/e2e/system"
)

// figures is what is read of a report of `parley load`; docs/performance.md explains the fields.
type figures struct {
	MessagesPerSecond float64 `json:"messages_per_second"`
	ConnectsPerSecond float64 `json:"connects_per_second"`
	Connections       int     `json:"connections"`
	Failures          int     `json:"connect_failures"`
	Alive             int     `json:"alive_at_end"`
	Sent              int64   `json:"sent"`
	Acked             int64   `json:"acked"`
	Delivered         int64   `json:"delivered"`
	Refused           int64   `json:"refused"`
	Hinted            int64   `json:"refused_with_retry_hint"`
	Unknown           int64   `json:"outcome_unknown"`
	Ack               latency `json:"ack"`
	Delivery          latency `json:"delivery"`
	Refusal           latency `json:"refusal"`
	Checked           bool    `json:"checked"`
	Losses            int64   `json:"losses"`
	Duplicates        int64   `json:"duplicates"`
	Reordered         int64   `json:"order_violations"`
	ClientMicros      float64 `json:"client_cpu_us_per_message"`
	Processes         map[string]struct {
		CPUPerThousand     float64 `json:"cpu_seconds_per_1000_messages"`
		RSS                int64   `json:"rss_bytes"`
		BytesPerConnection float64 `json:"bytes_per_connection"`
	} `json:"processes"`
}

type latency struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// cpu is CPU seconds per 1,000 messages over all processes that are not told by their admin port: those are
// told by their id already.
func (f figures) cpu() float64 {
	var sum float64
	for name, p := range f.Processes {
		if !strings.HasPrefix(name, "http://") {
			sum += p.CPUPerThousand
		}
	}
	return sum
}

// bench runs commands of `parley` and keeps what they printed.
type bench struct {
	t      testing.TB
	parley string // the program
	dir    string // of the people's files
	cpu    string // the CPU of the load client; empty: any
	seed   uint64
	raw    *bytes.Buffer
}

// people are those of a file, with the deployment that they live in.
type people struct {
	file  string
	where []string // the flags of `parley load` that name the deployment
}

// seedOne makes people in a system of one process.
func (b *bench) seedOne(s *system.System, name string, args ...string) people {
	b.t.Helper()
	p := people{filepath.Join(b.dir, name), []string{"--data", s.Data()}}
	b.run(nil, append([]string{"seed", "--data", s.Data(), "--out", p.file}, args...)...)
	return p
}

// seedSeparate makes people in a system of separate processes, which are all measured.
func (b *bench) seedSeparate(s *system.System, name string, args ...string) people {
	b.t.Helper()
	database, key := s.Seeding()
	p := people{file: filepath.Join(b.dir, name)}
	b.run([]string{key}, append([]string{
		"seed", "--auth-database-url", database, "--url", "http://" + s.Gateways[0], "--force", "--out", p.file,
	}, args...)...)
	var urls, pids []string
	for _, gateway := range s.Gateways {
		urls = append(urls, "ws://"+gateway+"/v1/ws")
	}
	for _, process := range s.Processes() {
		pids = append(pids, fmt.Sprintf("%s=%d", process.Name, process.PID()))
	}
	pids = append(pids, fmt.Sprintf("postgres=%d", s.Postgres.PID()), fmt.Sprintf("nats=%d", s.NATS.PID()))
	p.where = []string{"--url", strings.Join(urls, ","), "--pids", strings.Join(pids, ",")}
	return p
}

// load is `parley load`. Broken promises are told by the figures, not by an exit code.
func (b *bench) load(p people, args ...string) figures {
	b.t.Helper()
	all := append([]string{"load", "--users-file", p.file, "--seed", strconv.FormatUint(b.seed, 10), "--json", "--quiet"}, p.where...)
	out := b.run(nil, append(all, args...)...)
	var f figures
	if err := json.Unmarshal(out, &f); err != nil {
		b.t.Fatalf("the report of parley load: %v\n%s", err, out)
	}
	return f
}

// run runs `parley` and notes the command and what it printed.
func (b *bench) run(env []string, args ...string) []byte {
	b.t.Helper()
	command := append([]string{b.parley}, args...)
	if b.cpu != "" {
		command = append([]string{"taskset", "-c", b.cpu}, command...)
	}
	cmd := exec.CommandContext(b.t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Minute
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	fmt.Fprintf(b.raw, "$ parley %s\n%s\n", strings.Join(args, " "), bytes.TrimSpace(out.Bytes()))
	if err != nil && out.Len() == 0 {
		b.t.Fatalf("parley %s: %v\n%s", strings.Join(args, " "), err, log.Bytes())
	}
	return out.Bytes()
}
