package load

import (
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Latency in milliseconds.
type Latency struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P95   float64 `json:"p95_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
	Max   float64 `json:"max_ms"`
}

func latencyOf(l latencies) Latency {
	at := func(p float64) float64 { return float64(l.ValueAtPercentile(p)) / 1000 }
	return Latency{l.TotalCount(), at(50), at(95), at(99), at(99.9), float64(l.Max()) / 1000}
}

// Process is what a server process used in the measured time.
type Process struct {
	CPUSeconds float64 `json:"cpu_seconds"`
	// CPUPerThousand messages, in seconds.
	CPUPerThousand float64 `json:"cpu_seconds_per_1000_messages,omitempty"`
	// RSS at the end, in bytes, and PSS with all descendants; see Usage. RSSPeak is the most that was seen of RSS in the
	// measured time and until the last answer, every tenth of a second.
	RSS     int64 `json:"rss_bytes"`
	RSSPeak int64 `json:"rss_peak_bytes,omitempty"`
	PSS     int64 `json:"pss_tree_bytes"`
	// BytesPerConnection is the slope of RSS over the steps of idle.
	BytesPerConnection float64 `json:"bytes_per_connection,omitempty"`
}

// Step is one number of idle connections.
type Step struct {
	Connections int              `json:"connections"`
	Usage       map[string]Usage `json:"usage"`
}

// Report is the summary of a run; --json prints it.
type Report struct {
	Scenario string    `json:"scenario"`
	Mode     string    `json:"mode,omitempty"`
	At       time.Time `json:"at"`
	Command  string    `json:"command"`
	Seed     uint64    `json:"seed"`
	Machine  Machine   `json:"machine"`
	Procs    int       `json:"client_processes"`

	Connections     int `json:"connections"`
	ConnectFailures int `json:"connect_failures"`
	// ConnectsPerSecond are from the dial to Welcome: the upgrade, the check of the token, presence. If the scenario has a
	// Sync it is ConnectsWithSync instead, from the dial to the answer of the first Sync.
	ConnectsPerSecond float64 `json:"connects_per_second,omitempty"`
	ConnectsWithSync  float64 `json:"connects_with_sync_per_second,omitempty"`
	// Connects99 leaves out the last of a hundred.
	Connects99 float64 `json:"connects_per_second_first_99_percent"`
	AliveAtEnd int     `json:"alive_at_end"`
	// Watching are the people whose presence the connections watch, Unseen those of them whose state the server did not tell.
	Watching int64 `json:"watches"`
	Unseen   int64 `json:"watches_without_state"`

	// Seconds is the measured time, Ended its planned end.
	Seconds float64   `json:"seconds,omitempty"`
	Ended   time.Time `json:"ended,omitzero"`
	// Sent, Acked and Delivered are of messages meant to leave in it; AckedIn were acknowledged in it, and the
	// rates and the CPU of a message go by those.
	AckedIn             int64   `json:"acked_in_time"`
	Sent                int64   `json:"sent"`
	Acked               int64   `json:"acked"`
	Delivered           int64   `json:"delivered"`
	MessagesPerSecond   float64 `json:"messages_per_second"`
	DeliveriesPerSecond float64 `json:"deliveries_per_second"`
	Refused             int64   `json:"refused"`
	RefusedWithHint     int64   `json:"refused_with_retry_hint"`
	Unknown             int64   `json:"outcome_unknown"`
	// Unanswered of Unknown had no answer at the end of the wait, NeverSent found no connection until then, Undelivered were
	// acknowledged and had not arrived. Their time until then is in Ack and Delivery.
	Unanswered  int64 `json:"never_answered"`
	NeverSent   int64 `json:"never_sent"`
	Undelivered int64 `json:"undelivered"`
	// SentIn left in the measured time, and Late is by how much this client was behind its plan in the open loop.
	SentIn int64   `json:"sent_in_time"`
	Late   Latency `json:"client_late"`

	Ack      Latency `json:"ack"`
	Delivery Latency `json:"delivery"`
	Refusal  Latency `json:"refusal"`
	Sync     Latency `json:"sync"`
	// Start is all that a client asks before it shows anything; StartsPerSecond happened.
	Start           Latency `json:"start"`
	StartsPerSecond float64 `json:"starts_per_second,omitempty"`

	// PushesMissed came by ListEvents only; doubles and holes in pushes are repaired and are
	// no fault in themselves.
	PushesMissed  int64            `json:"pushes_missed"`
	PushesDoubled int64            `json:"pushes_doubled"`
	PushHoles     int64            `json:"push_holes"`
	Disconnects   int64            `json:"disconnects"`
	Renewed       int64            `json:"tokens_renewed"`
	Errors        map[string]int64 `json:"errors"`

	// The judge: what the system broke.
	Checked    bool             `json:"checked"`
	Judged     int64            `json:"messages_judged"`
	Losses     int64            `json:"losses"`
	Duplicates int64            `json:"duplicates"`
	Reordered  int64            `json:"order_violations"`
	Violations map[string]int64 `json:"violations"`
	Told       []string         `json:"violations_told,omitempty"`
	Full       bool             `json:"stopped_record_full,omitempty"`
	// JudgeFailed says why the judge could not finish.
	JudgeFailed string `json:"judge_failed,omitempty"`

	Processes map[string]*Process `json:"processes"`
	Steps     []Step              `json:"steps,omitempty"`
	// Caches are those of the servers of --metrics, by name.
	Caches map[string]CacheUse `json:"caches,omitempty"`
	// ClientCPUSeconds are of all client processes, ClientMicros per message.
	ClientCPUSeconds float64 `json:"client_cpu_seconds"`
	ClientMicros     float64 `json:"client_cpu_us_per_message,omitempty"`
}

// Machine is where it ran.
type Machine struct {
	CPUs   int    `json:"cpus"`
	Model  string `json:"model"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	// LoadBefore and LoadAfter are the load averages of the last minute.
	LoadBefore string `json:"load_average_before"`
	LoadAfter  string `json:"load_average_after"`
}

func machine() Machine {
	return Machine{
		CPUs: runtime.NumCPU(), Go: runtime.Version(), LoadBefore: loadAverage(),
		Model: fieldOf("/proc/cpuinfo", "model name"), Kernel: firstLine("/proc/sys/kernel/osrelease"),
	}
}

// counted fills in what the client processes counted.
func (r *Report) counted(c *Counts, seconds float64) {
	r.Seconds = round(seconds, 3)
	r.Sent, r.Acked, r.Delivered, r.Refused, r.RefusedWithHint, r.Unknown = c.Sent, c.Acked, c.Delivered, c.Refused, c.Hinted, c.Unknown
	r.AckedIn, r.SentIn, r.Late = c.AckedIn, c.SentIn, latencyOf(c.Late)
	r.Unanswered, r.NeverSent, r.Undelivered = c.Unanswered, c.NeverSent, c.Undelivered
	r.PushesMissed, r.PushesDoubled, r.PushHoles = c.Missed, c.Doubled, c.Holes
	r.Disconnects, r.Renewed, r.Errors = c.Disconnects, c.Renewed, c.Errors
	r.Ack, r.Delivery, r.Refusal, r.Sync = latencyOf(c.Ack), latencyOf(c.Delivery), latencyOf(c.Refusal), latencyOf(c.SyncTime)
	r.Start = latencyOf(c.StartTime)
	if seconds > 0 {
		r.StartsPerSecond = round(float64(c.Starts)/seconds, 1)
		r.MessagesPerSecond = round(float64(c.AckedIn)/seconds, 1)
		r.DeliveriesPerSecond = round(float64(c.DeliveredIn)/seconds, 1)
	}
}

// judged fills in what the judge found.
func (r *Report) judged(v *Verdict) {
	r.Checked, r.Judged, r.Violations, r.Told, r.JudgeFailed = v.Checked, v.Messages, v.Violations, v.Told, v.Failed
	r.Losses, r.Duplicates, r.Reordered = v.Violations["lost"], v.Violations["doubled"], v.Violations["reordered"]
}

// used fills in what the processes used between two samples, of which the given part counts.
func (r *Report) used(before, after map[string]Usage, part float64) {
	r.Processes = map[string]*Process{}
	for name, end := range after {
		p := &Process{CPUSeconds: round((end.CPU-before[name].CPU)*part, 3), RSS: end.RSS, PSS: end.PSS}
		if r.AckedIn > 0 {
			p.CPUPerThousand = round(p.CPUSeconds/float64(r.AckedIn)*1000, 4)
		}
		r.Processes[name] = p
	}
}

// sloped fills in the memory per connection: from the first step to the last.
func (r *Report) sloped() {
	if len(r.Steps) < 2 {
		return
	}
	first, last := r.Steps[0], r.Steps[len(r.Steps)-1]
	if first.Connections == last.Connections {
		return
	}
	for name, p := range r.Processes {
		grown := last.Usage[name].RSS - first.Usage[name].RSS
		p.BytesPerConnection = round(float64(grown)/float64(last.Connections-first.Connections), 0)
	}
}

// connected fills in how fast connections were made.
func (r *Report) connected(seconds, seconds99 float64, sync bool) {
	rate := round(float64(r.Connections)/seconds, 1)
	if sync {
		r.ConnectsWithSync = rate
	} else {
		r.ConnectsPerSecond = rate
	}
	if seconds99 > 0 {
		r.Connects99 = round(float64(r.Connections)*0.99/seconds99, 1)
	}
}

// broken says whether the system broke a promise.
func (r *Report) broken() bool { return len(r.Violations) > 0 }

// fault is what the command ends with.
func (r *Report) fault() error {
	if r.broken() {
		return ErrBroken
	}
	if r.JudgeFailed != "" {
		return fmt.Errorf("the judge could not finish: %s", r.JudgeFailed)
	}
	return nil
}

func round(x float64, digits int) float64 {
	shift := math.Pow10(digits)
	return math.Round(x*shift) / shift
}

// print is the report for people.
func (r *Report) print(out io.Writer) error {
	w := &lines{}
	w.addf("%s %s, seed %d, %d client processes", r.Scenario, r.Mode, r.Seed, r.Procs)
	w.addf("machine      %d CPUs %s, Linux %s, load average %s before, %s after", r.Machine.CPUs, r.Machine.Model, r.Machine.Kernel, r.Machine.LoadBefore, r.Machine.LoadAfter)
	with := ""
	if r.ConnectsWithSync > 0 {
		with = " with Sync"
	}
	w.addf("connections  %d opened, %d failed, %.0f/s%s (first 99 %%: %.0f/s), %d alive at the end, %d disconnects, %d tokens renewed",
		r.Connections, r.ConnectFailures, r.ConnectsPerSecond+r.ConnectsWithSync, with, r.Connects99, r.AliveAtEnd, r.Disconnects, r.Renewed)
	if r.Watching > 0 {
		w.addf("presence     %d watches, %d of them without a state", r.Watching, r.Unseen)
	}
	if r.Sent > 0 {
		w.addf("messages     %d sent, %d acked, %d delivered; in %.1f s %.1f/s acked, %.1f/s delivered", r.Sent, r.Acked, r.Delivered, r.Seconds, r.MessagesPerSecond, r.DeliveriesPerSecond)
		w.addf("             %d refused (%d with a hint when to come again), %d without a certain outcome, %d of them never answered; %d never sent, %d undelivered",
			r.Refused, r.RefusedWithHint, r.Unknown, r.Unanswered, r.NeverSent, r.Undelivered)
		w.addf("pushes       %d missed, %d doubled, %d out of order; all repaired by the protocol", r.PushesMissed, r.PushesDoubled, r.PushHoles)
	}
	for _, l := range []struct {
		name string
		of   Latency
	}{{"ack", r.Ack}, {"delivery", r.Delivery}, {"refusal", r.Refusal}, {"sync", r.Sync}, {"start", r.Start}, {"client late", r.Late}} {
		if l.of.Count > 0 {
			w.addf("%-12s p50 %.2f  p95 %.2f  p99 %.2f  p99.9 %.2f  max %.2f ms", l.name, l.of.P50, l.of.P95, l.of.P99, l.of.P999, l.of.Max)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Processes)) {
		p := r.Processes[name]
		w.addf("%-12s %.2f CPU s, %s per 1,000 messages; %.1f MiB resident (peak %s, with children %.1f); %s bytes per connection",
			name, p.CPUSeconds, measured("%.4f", p.CPUPerThousand), float64(p.RSS)/(1<<20), measured("%.1f", float64(p.RSSPeak)/(1<<20)),
			float64(p.PSS)/(1<<20), measured("%.0f", p.BytesPerConnection))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Caches)) {
		c := r.Caches[name]
		w.addf("cache        %-20s %.1f %% of %d", name, c.HitRate*100, c.Requests)
	}
	w.addf("client       %.2f CPU s, %.1f µs per message", r.ClientCPUSeconds, r.ClientMicros)
	for _, name := range slices.Sorted(maps.Keys(r.Errors)) {
		w.addf("error        %6d × %s", r.Errors[name], name)
	}
	r.printVerdict(w)
	_, err := io.WriteString(out, w.String())
	return err
}

// measured is a figure, or a dash where nothing was measured.
func measured(format string, x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf(format, x)
}

func (r *Report) printVerdict(w *lines) {
	switch {
	case r.Scenario != scenarioDirect:
	case r.JudgeFailed != "":
		w.addf("judge        could not finish: %s", r.JudgeFailed)
	case !r.Checked:
		w.addf("judge        was not asked")
	case !r.broken():
		w.addf("judge        %d messages: nothing lost, nothing doubled, all in order", r.Judged)
	default:
		w.addf("judge        %d messages: %d lost, %d doubled, %d out of order; by rule: %v", r.Judged, r.Losses, r.Duplicates, r.Reordered, r.Violations)
		for _, told := range r.Told {
			w.addf("             %s", told)
		}
	}
	if r.Full {
		w.addf("             the record was full and the load ended early; see --record-limit")
	}
}

type lines struct{ strings.Builder }

func (l *lines) addf(format string, args ...any) {
	_, _ = fmt.Fprintf(l, format+"\n", args...) // a Builder does not fail
}
