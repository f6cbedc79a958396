package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Report is a run with what it ran on.
type Report struct {
	Machine  string   `json:"machine"`
	Command  string   `json:"command"`
	Seed     uint64   `json:"seed"`
	Duration string   `json:"duration"`
	Pairs    int      `json:"pairs"`
	Rate     int      `json:"messages_per_second"`
	Worst    float64  `json:"worst_recovery_s"`
	Messages int      `json:"messages"`
	Rounds   []Result `json:"rounds"`
}

// NewReport makes the report of a run.
func NewReport(cfg Config, command string, rounds []Result) Report {
	r := Report{
		Machine: machine(), Command: command, Seed: cfg.Seed, Duration: cfg.Duration.String(),
		Pairs: cfg.Pairs, Rate: cfg.Rate, Rounds: rounds,
	}
	for _, round := range rounds {
		r.Worst, r.Messages = max(r.Worst, round.Recovery), max(r.Messages, round.Messages)
	}
	return r
}

// JSON is the report as one line per round.
func (r Report) JSON() string {
	rounds := make([]string, 0, len(r.Rounds))
	for _, round := range r.Rounds {
		raw, err := json.Marshal(round)
		if err != nil {
			return err.Error()
		}
		rounds = append(rounds, "  "+string(raw))
	}
	r.Rounds = nil
	head, err := json.Marshal(r)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(string(head), "null}") + "[\n" + strings.Join(rounds, ",\n") + "\n]}"
}

// String is a round as one line for people.
func (r Result) String() string {
	text := fmt.Sprintf("%3d  %-48s recovered %5.1f s  settled %5.1f s  silence %4.1f s  acked %6d  retried %4d  judged %7d  load %s",
		r.Round, r.Fault, r.Recovery, r.Settled, r.Silence, r.Acked, r.Retried, r.Messages, r.Load)
	if r.Repair > 0 {
		text += fmt.Sprintf("  right after %.1f s of silence", r.Repair)
	}
	if r.Recovery > 3 { // of interest
		text += "  last: " + r.Last
	}
	if r.Replayed > 0 {
		text += fmt.Sprintf("  %d messages in the stream again", r.Replayed)
	}
	if len(r.Wrong) > 0 {
		text += "\n     WRONG: " + strings.Join(r.Wrong, "\n     ")
	}
	return text
}

// loadAverage is that of the last minute.
func loadAverage() string {
	raw, _ := os.ReadFile("/proc/loadavg") // unknown elsewhere
	one, _, _ := strings.Cut(string(raw), " ")
	return one
}

// machine describes what the run ran on.
func machine() string {
	text := fmt.Sprintf("%d CPUs, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if model := fieldOf("/proc/cpuinfo", "model name"); model != "" {
		text += ", " + model
	}
	if memory := fieldOf("/proc/meminfo", "MemTotal"); memory != "" {
		text += ", " + memory
	}
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		text += ", Linux " + strings.TrimSpace(string(raw))
	}
	return text
}

// fieldOf reads "name : value" from a file of /proc; empty elsewhere.
func fieldOf(path, name string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
