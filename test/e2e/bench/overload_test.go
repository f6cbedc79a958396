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
	// normalLoad is how much of the peak is normal. A message alone costs several times what it costs in a batch: at 0.3
	// one CPU is nearly full, and the delay is that of a queue, whatever was before.
	normalLoad = 0.1
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

// overload pins the product to one CPU and the client to another, finds the peak and asks for three times that. The
// peak is measured before and after, for the machine's pace may have changed.
func (m *measurer) overload(t *testing.T) {
	options := system.Options{Env: manySockets()}
	client := ""
	if runtime.NumCPU() > 1 {
		options.CPU, client = "0", "1"
	}
	product := system.Start(t, system.OneProcess, options)
	ours := m.seedOne(product, "overload", "--users", strconv.Itoa(2*m.plan.pairs), "--pairs", strconv.Itoa(m.plan.pairs))
	var o overload
	pace := m.inPace(t, startBare(t, ours), func() {
		m.cpu = client
		defer func() { m.cpu = "" }()
		o = m.overloaded(ours)
	})
	m.sayf("peak %.0f/s before, %.0f/s after; at three times the first (%d left in time, %d meant): %.0f/s stored, %d of %d refused (%s), ack %s, client late p99 %.1f ms",
		o.peak, o.peakAfter, o.over.SentIn, o.over.Sent, o.over.MessagesPerSecond, o.over.Refused, o.over.Sent, o.over.Refusal, o.over.Ack, o.over.Late.P99)
	for i := range normalWindows {
		m.sayf("delivery at %.1f times the peak, before: %s; in the window that ended %.1f s after the overload: %s", normalLoad, o.before[i].Delivery,
			o.after[i].Ended.Sub(o.over.Ended).Seconds(), o.after[i].Delivery)
	}
	last := normalWindows - 1
	beforeP99, afterP99, recovered := medianP99(o.before), medianP99(o.after), o.after[last].Ended.Sub(o.over.Ended)
	m.sayf("delivery p99 at %.1f times the peak (medians): %.1f ms before, %.1f ms within %.1f s of the overload", normalLoad, beforeP99, afterP99, recovered.Seconds())
	for _, name := range []string{"server", "postgres"} {
		calm, over := o.before[last].Processes[name], o.over.Processes[name]
		m.sayf("memory of %s: at most %d MB before, %d MB in the overload; with all below it %d MB before, %d MB at its end", name,
			calm.RSSPeak>>20, over.RSSPeak>>20, calm.PSS>>20, over.PSS>>20)
	}
	require.True(t, o.judged.Checked)
	if !m.plan.judged {
		return
	}
	requireHonest(t, o.over)
	requireHonest(t, o.judged)
	require.GreaterOrEqual(t, float64(o.over.SentIn), leastOffered*float64(o.over.Sent), "the client did not offer the load")
	require.Positive(t, o.over.Refused, "three times the peak is too much")
	require.GreaterOrEqual(t, o.over.MessagesPerSecond, leastGoodput*(o.peak+o.peakAfter)/2, "goodput")
	require.LessOrEqual(t, o.over.Refusal.P99, mostRefusalP99*pace, "refusals are quick, in milliseconds")
	require.LessOrEqual(t, recovered, recoverWithin, "the windows after the overload")
	require.LessOrEqual(t, afterP99, normalTimes*beforeP99+normalDelay, "delivery p99 after the load has dropped, in milliseconds")
	calm := o.before[last].Processes
	require.LessOrEqual(t, o.over.Processes["server"].RSSPeak>>20, 2*(calm["server"].RSSPeak>>20)+256, "memory in the overload, in MB")
	require.LessOrEqual(t, o.over.Processes["postgres"].PSS>>20, 2*(calm["postgres"].PSS>>20)+256, "memory of PostgreSQL, in MB")
}

// overload is what was measured before, in and after one.
type overload struct {
	peak, peakAfter float64 // messages a second, in the closed loop; the first is what the loads are times of
	before, after   []figures
	over, judged    figures // three times the peak, without a record and with one
}

func (m *measurer) overloaded(ours people) overload {
	peak := func() float64 {
		f := m.load(ours, m.pairs("--check=false")...)
		m.whole(f)
		return f.MessagesPerSecond
	}
	o := overload{peak: peak()}
	at := func(times float64, warmup, duration time.Duration, args ...string) figures {
		rate := strconv.FormatFloat(max(o.peak*times, 1), 'f', 0, 64)
		return m.load(ours, append([]string{
			"--pairs", strconv.Itoa(m.plan.pairs), "--mode", "open", "--rate", rate, "--warmup", warmup.String(), "--duration", duration.String(),
		}, args...)...)
	}
	seconds := time.Duration(m.plan.seconds) * time.Second
	warm := min(seconds, 5*time.Second)
	normal := func() (windows []figures) {
		for range normalWindows {
			windows = append(windows, at(normalLoad, time.Second, warm))
			m.kept(windows[len(windows)-1])
		}
		return windows
	}
	o.before = normal()
	// Without a record, so that the client ends soon; the same is judged below.
	o.over = at(3, warm, seconds, "--check=false")
	o.after = normal()
	o.peakAfter = peak()
	o.judged = at(3, 0, warm)
	return o
}

func medianP99(windows []figures) float64 {
	var all []float64
	for _, f := range windows {
		all = append(all, f.Delivery.P99)
	}
	return median(all)
}

// requireHonest requires that everything was stored or refused, and that every refusal said when to come again: a server that
// drops what is too much, or answers that it does not know, makes clients ask again at once.
func requireHonest(t *testing.T, over figures) {
	t.Helper()
	require.Zero(t, over.Unknown+over.NeverSent, "without a certain outcome")
	require.Equal(t, over.Sent, over.Acked+over.Refused, "stored or refused")
	require.Equal(t, over.Refused, over.Hinted, "every refusal says when to come again")
}
