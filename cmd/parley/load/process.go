package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a server process has used so far and holds now.
type Usage struct {
	// CPU in seconds, user and system, with all descendants.
	CPU float64 `json:"cpu_seconds"`
	// RSS of the process itself, in bytes; PSS of all descendants and itself, where a page that several share
	// counts once (0 if it may not be read).
	RSS int64 `json:"rss_bytes"`
	PSS int64 `json:"pss_tree_bytes"`
}

// ticksPerSecond is USER_HZ, which Linux has fixed at 100 on all platforms of Go.
const ticksPerSecond = 100

// watched are the server processes whose use is measured.
type watched struct {
	names   []string
	pids    map[string]int
	metrics []string
	client  *http.Client
}

// watch reads --pids ("server=12,postgres=13") and --metrics (URLs of admin ports).
func watch(pids string, metrics []string) (*watched, error) {
	w := &watched{pids: map[string]int{}, client: &http.Client{Timeout: 10 * time.Second}}
	for _, part := range strings.FieldsFunc(pids, func(r rune) bool { return r == ',' }) {
		name, number, ok := strings.Cut(part, "=")
		pid, err := strconv.Atoi(number)
		if !ok || err != nil {
			return nil, fmt.Errorf("--pids: %q is not name=PID", part)
		}
		w.names = append(w.names, name)
		w.pids[name] = pid
	}
	for _, url := range metrics {
		w.metrics = append(w.metrics, strings.TrimSuffix(strings.TrimSuffix(url, "/"), "/metrics"))
	}
	return w, nil
}

// roots are the watched processes.
func (w *watched) roots() map[int]bool {
	roots := make(map[int]bool, len(w.pids))
	for _, pid := range w.pids {
		roots[pid] = true
	}
	return roots
}

// sample is what all of them told at one time.
type sample struct {
	at     time.Time
	usage  map[string]Usage
	caches map[string]CacheUse
}

// sample looks at all of them now. With memory it also reads the PSS, for which the kernel walks all pages and
// holds up the process for some milliseconds, as a scrape does on a small machine: not while latency is measured.
func (w *watched) sample(ctx context.Context, memory bool) (sample, error) {
	now := sample{at: time.Now(), usage: map[string]Usage{}, caches: map[string]CacheUse{}}
	if len(w.pids) > 0 {
		table, err := processes()
		if err != nil {
			return now, err
		}
		for _, name := range w.names {
			if now.usage[name], err = table.usage(w.pids[name], w.roots(), memory); err != nil {
				return now, fmt.Errorf("--pids: %s: %w", name, err)
			}
		}
	}
	for _, url := range w.metrics {
		metrics, err := w.ask(ctx, http.MethodGet, url+"/metrics", http.StatusOK)
		if err != nil {
			return now, fmt.Errorf("--metrics: %w", err)
		}
		if now.usage[url], err = usageOf(metrics); err != nil {
			return now, fmt.Errorf("--metrics: %s: %w", url, err)
		}
		addCaches(now.caches, metrics)
	}
	return now, nil
}

// peaks raises the resident memory in most, by name, to what is seen until an instant or the end of ctx, and at least once. It reads
// a small file of each process; those below them are left out.
func (w *watched) peaks(ctx context.Context, until time.Time, most map[string]int64) {
	for {
		for _, name := range w.names {
			raw, err := os.ReadFile("/proc/" + strconv.Itoa(w.pids[name]) + "/stat")
			if err != nil {
				continue // it has ended, which the next sample tells
			}
			if entry, ok := parseStat(string(raw)); ok {
				most[name] = max(most[name], entry.rss)
			}
		}
		if sleepUntil(ctx, earlier(until, time.Now().Add(samplePeak))) != nil || !time.Now().Before(until) {
			return
		}
	}
}

// memory adds what each process and all below it hold now to what they have used.
func (w *watched) memory(usage map[string]Usage) error {
	if len(w.pids) == 0 {
		return nil
	}
	table, err := processes()
	if err != nil {
		return err
	}
	for _, name := range w.names {
		now, err := table.usage(w.pids[name], w.roots(), true)
		if err != nil {
			return fmt.Errorf("--pids: %s: %w", name, err)
		}
		u := usage[name]
		u.PSS = now.PSS
		usage[name] = u
	}
	return nil
}

// usageOf reads the figures of the process, which every admin port has in its metrics.
func usageOf(metrics []byte) (Usage, error) {
	var u Usage
	found := 0
	lines := bufio.NewScanner(bytes.NewReader(metrics))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ = strings.Cut(name, "{")
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "process_cpu_seconds_total":
			u.CPU, found = number, found+1
		case "process_resident_memory_bytes":
			u.RSS, found = int64(number), found+1
		}
	}
	if found < 2 {
		return u, errors.New("the metrics tell nothing about their process")
	}
	return u, lines.Err()
}

func (w *watched) ask(ctx context.Context, method, url string, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, url, err)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, url, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		return nil, errors.Join(fmt.Errorf("%s %s: status %d", method, url, res.StatusCode), err)
	}
	return body, nil
}

// release asks every admin port to give back what is free, so that the memory after it is
// what is in use.
func (w *watched) release(ctx context.Context) error {
	for _, url := range w.metrics {
		for range 2 { // the second one frees what the first has finalised
			if _, err := w.ask(ctx, http.MethodPost, url+"/debug/memory/release", http.StatusNoContent); err != nil {
				return err
			}
		}
	}
	return nil
}

// entryOf is a line of the table of processes.
type entryOf struct {
	parent int
	cpu    float64
	rss    int64
}

type processTable map[int]entryOf

// processes reads /proc. Processes that end meanwhile are left out.
func processes() (processTable, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(paths) == 0 {
		return nil, errors.New("--pids needs /proc, which only Linux has; use --metrics")
	}
	table := processTable{}
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if entry, ok := parseStat(string(raw)); ok {
			table[pid] = entry
		}
	}
	return table, nil
}

// parseStat reads a line of proc_pid_stat(5): after the name in parentheses come the state, the
// parent (field 4), the times (14 to 17; the last two of children that have ended) and the RSS in pages (24).
func parseStat(line string) (entryOf, bool) {
	end := strings.LastIndex(line, ") ")
	if end < 0 {
		return entryOf{}, false
	}
	fields := strings.Fields(line[end+2:]) // fields[0] is field 3
	if len(fields) < 22 {
		return entryOf{}, false
	}
	number := func(field int) int64 {
		n, err := strconv.ParseInt(fields[field-3], 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	ticks := number(14) + number(15) + number(16) + number(17)
	return entryOf{
		parent: int(number(4)), cpu: float64(ticks) / ticksPerSecond, rss: number(24) * int64(os.Getpagesize()),
	}, true
}

// usage adds up a process and its descendants, except those that another watched
// process is the root of: PostgreSQL that runs below the server is its own.
func (t processTable) usage(root int, roots map[int]bool, memory bool) (Usage, error) {
	own, ok := t[root]
	if !ok {
		return Usage{}, fmt.Errorf("there is no process %d", root)
	}
	u := Usage{RSS: own.rss}
	for pid, entry := range t {
		for at, depth := pid, 0; at > 1 && depth < 16; at, depth = t[at].parent, depth+1 {
			if at == root {
				u.CPU += entry.cpu
				if memory {
					u.PSS += proportional(pid)
				}
				break
			}
			if roots[at] {
				break // counts for that one
			}
		}
	}
	return u, nil
}

// proportional is the proportional set size of a process, 0 if it has ended or may not be read.
func proportional(pid int) int64 {
	kilobytes, _, _ := strings.Cut(fieldOf("/proc/"+strconv.Itoa(pid)+"/smaps_rollup", "Pss"), " ")
	n, err := strconv.ParseInt(kilobytes, 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}
