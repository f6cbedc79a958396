package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parleychat/parley/test/e2e/system"
)

// figures is what is read of a report of `parley load`; docs/performance.md explains the fields.
type figures struct {
	MessagesPerSecond float64            `json:"messages_per_second"`
	ConnectsPerSecond float64            `json:"connects_per_second"`
	ConnectsWithSync  float64            `json:"connects_with_sync_per_second"`
	Connections       int                `json:"connections"`
	Failures          int                `json:"connect_failures"`
	Alive             int                `json:"alive_at_end"`
	Watches           int64              `json:"watches"`
	Unseen            int64              `json:"watches_without_state"`
	Ended             time.Time          `json:"ended"`
	Sent              int64              `json:"sent"`
	SentIn            int64              `json:"sent_in_time"`
	Acked             int64              `json:"acked"`
	Delivered         int64              `json:"delivered"`
	Refused           int64              `json:"refused"`
	Hinted            int64              `json:"refused_with_retry_hint"`
	Unknown           int64              `json:"outcome_unknown"`
	NeverSent         int64              `json:"never_sent"`
	Undelivered       int64              `json:"undelivered"`
	Missed            int64              `json:"pushes_missed"`
	Ack               latency            `json:"ack"`
	Delivery          latency            `json:"delivery"`
	Refusal           latency            `json:"refusal"`
	Sync              latency            `json:"sync"`
	Late              latency            `json:"client_late"`
	Checked           bool               `json:"checked"`
	Violations        map[string]int64   `json:"violations"`
	Told              []string           `json:"violations_told"`
	ClientMicros      float64            `json:"client_cpu_us_per_message"`
	Processes         map[string]process `json:"processes"`
}

type latency struct {
	P50  float64 `json:"p50_ms"`
	P95  float64 `json:"p95_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p99_9_ms"`
	Max  float64 `json:"max_ms"`
}

func (l latency) String() string {
	return fmt.Sprintf("p50 %.2f, p95 %.2f, p99 %.2f, p99.9 %.2f, max %.2f ms", l.P50, l.P95, l.P99, l.P999, l.Max)
}

type process struct {
	CPUPerThousand     float64 `json:"cpu_seconds_per_1000_messages"`
	RSS                int64   `json:"rss_bytes"`
	RSSPeak            int64   `json:"rss_peak_bytes"`
	PSS                int64   `json:"pss_tree_bytes"`
	BytesPerConnection float64 `json:"bytes_per_connection"`
}

// shares are the CPU seconds per 1,000 messages of each process.
func (f figures) shares() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(f.Processes)) {
		if !strings.HasPrefix(name, "http://") {
			parts = append(parts, fmt.Sprintf("%s %.3f", name, f.Processes[name].CPUPerThousand))
		}
	}
	return strings.Join(parts, ", ")
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
	pids = append(pids, fmt.Sprintf("postgres=%d", s.Postgres.PID()), fmt.Sprintf("nats=%d", s.NATS.PID()),
		fmt.Sprintf("redis=%d", s.Redis.PID()))
	p.where = []string{"--url", strings.Join(urls, ","), "--pids", strings.Join(pids, ",")}
	return p
}

// load is `parley load`. It fails if a promise was broken.
func (b *bench) load(p people, args ...string) figures {
	b.t.Helper()
	all := append([]string{"load", "--users-file", p.file, "--seed", strconv.FormatUint(b.seed, 10), "--json", "--quiet"}, p.where...)
	out := b.run(nil, append(all, args...)...)
	var f figures
	if err := json.Unmarshal(out, &f); err != nil {
		b.t.Fatalf("the report of parley load: %v\n%s", err, out)
	}
	if len(f.Violations) > 0 {
		b.t.Fatalf("broken promises: %v\n%s", f.Violations, strings.Join(f.Told, "\n"))
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
	fmt.Fprintf(b.raw, "$ parley %s\n%s\n", withoutFolders(strings.Join(args, " ")), withoutFolders(string(bytes.TrimSpace(out.Bytes()))))
	if err != nil {
		b.t.Fatalf("parley %s: %v\n%s\n%s", strings.Join(args, " "), err, log.Bytes(), out.Bytes())
	}
	return out.Bytes()
}

// folders are those of a path that is no part of a URL.
var folders = regexp.MustCompile(`(^|[ ="])/(?:[^/\s",=]+/)+`)

// withoutFolders leaves the names of files: the folders are of one machine and one run.
func withoutFolders(text string) string { return folders.ReplaceAllString(text, "$1") }

// sayf tells a result, in the log of the test and among the raw results.
func (b *bench) sayf(format string, args ...any) {
	b.t.Helper()
	line := fmt.Sprintf(format, args...)
	b.t.Log(line)
	fmt.Fprintf(b.raw, "## %s\n\n", line)
}
