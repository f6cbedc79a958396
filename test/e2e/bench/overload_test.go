package bench

import (
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/test/e2e/system"
)

const (
	// normalDelay is what p99 may be above before when things are normal again, beside normalTimes.
	normalDelay = 5.0 // ms
	normalTimes = 1.5
	// leastOffered is which part of the wanted load must have left in time: a client that cannot offer it overloads nobody.
	leastOffered = 0.98
	// recoverWithin is when everything has to be as before.
	recoverWithin = 30 * time.Second
	// normalWindows are measured before and after, and their medians compared: in one window, a single gap in which the
	// machine's owner takes the CPU is more than a hundredth of the messages.
	normalWindows = 3
)

// overload pins the product to one CPU and the client to another, finds the peak and asks for three times that.
func (m *measurer) overload(t *testing.T) {
	options := system.Options{Env: manySockets()}
	if runtime.NumCPU() > 1 {
		options.CPU, m.cpu = "0", "1"
		defer func() { m.cpu = "" }()
	}
	product := system.Start(t, system.OneProcess, options)
	ours := m.seedOne(product, "overload", "--users", strconv.Itoa(2*m.plan.pairs), "--pairs", strconv.Itoa(m.plan.pairs))
	peak := m.load(ours, m.pairs("--check=false")...)
	m.whole(peak)
	at := func(times float64, warmup, duration time.Duration, args ...string) figures {
		rate := strconv.FormatFloat(max(peak.MessagesPerSecond*times, 1), 'f', 0, 64)
		return m.load(ours, append([]string{
			"--pairs", strconv.Itoa(m.plan.pairs), "--mode", "open", "--rate", rate, "--warmup", warmup.String(), "--duration", duration.String(),
		}, args...)...)
	}
	seconds := time.Duration(m.plan.seconds) * time.Second
	warm := min(seconds, 5*time.Second)
	normal := func() (windows []figures, p99 float64) {
		var all []float64
		for range normalWindows {
			f := at(0.3, time.Second, min(seconds, 5*time.Second))
			m.kept(f)
			windows, all = append(windows, f), append(all, f.Delivery.P99)
		}
		return windows, median(all)
	}
	before, beforeP99 := normal()
	calm := before[len(before)-1]
	// Without a record, so that the client ends soon; the same is judged below.
	over := at(3, warm, seconds, "--check=false")
	afterwards, afterP99 := normal()
	recovered := afterwards[len(afterwards)-1].Ended.Sub(over.Ended)
	m.sayf("peak %.0f/s; at three times (%d left in time, %d meant): %.0f/s stored, %d of %d refused (%s), ack %s, client late p99 %.1f ms",
		peak.MessagesPerSecond, over.SentIn, over.Sent, over.MessagesPerSecond, over.Refused, over.Sent, over.Refusal, over.Ack, over.Late.P99)
	for i := range normalWindows {
		m.sayf("delivery at 0.3 times the peak, before: %s; in the window that ended %.1f s after the overload: %s", before[i].Delivery,
			afterwards[i].Ended.Sub(over.Ended).Seconds(), afterwards[i].Delivery)
	}
	m.sayf("delivery p99 at 0.3 times the peak (medians): %.1f ms before, %.1f ms within %.1f s of the overload", beforeP99, afterP99, recovered.Seconds())
	for _, name := range []string{"server", "postgres"} {
		p := over.Processes[name]
		calm := calm.Processes[name]
		m.sayf("memory of %s: at most %d MB before, %d MB in the overload; with all below it %d MB before, %d MB at its end", name,
			calm.RSSPeak>>20, p.RSSPeak>>20, calm.PSS>>20, p.PSS>>20)
	}
	judged := at(3, 0, warm)
	require.True(t, judged.Checked)
	if !m.plan.judged {
		return
	}
	requireHonest(t, over)
	requireHonest(t, judged)
	require.GreaterOrEqual(t, float64(over.SentIn), leastOffered*float64(over.Sent), "the client did not offer the load")
	require.Positive(t, over.Refused, "three times the peak is too much")
	require.GreaterOrEqual(t, over.MessagesPerSecond, leastGoodput*peak.MessagesPerSecond, "goodput")
	require.LessOrEqual(t, over.Refusal.P99, mostRefusalP99, "refusals are quick, in milliseconds")
	require.LessOrEqual(t, recovered, recoverWithin, "the windows after the overload")
	require.LessOrEqual(t, afterP99, normalTimes*beforeP99+normalDelay, "delivery p99 after the load has dropped, in milliseconds")
	require.LessOrEqual(t, over.Processes["server"].RSSPeak>>20, 2*(calm.Processes["server"].RSSPeak>>20)+256, "memory in the overload, in MB")
	require.LessOrEqual(t, over.Processes["postgres"].PSS>>20, 2*(calm.Processes["postgres"].PSS>>20)+256, "memory of PostgreSQL, in MB")
}

// requireHonest requires that everything was stored or refused, and that every refusal said when to come again: a server that
// drops what is too much, or answers that it does not know, makes clients ask again at once.
func requireHonest(t *testing.T, over figures) {
	t.Helper()
	require.Zero(t, over.Unknown+over.NeverSent, "without a certain outcome")
	require.Equal(t, over.Sent, over.Acked+over.Refused, "stored or refused")
	require.Equal(t, over.Refused, over.Hinted, "every refusal says when to come again")
}
