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
	// normalWindows are measured before and after, and their medians compared. They are short, because a disk that is
	// shared answers every few seconds 20 to 45 ms late, and the CPU is taken away now and then: one such gap is more than a
	// hundredth of the messages of a window, so most windows have to be without one for p99 to say something of Parley.
	normalWindows = 5
	normalWindow  = 2 * time.Second
)

// overload pins the product to one CPU and the client to another, and measures in turns its peak and what it does with three
// times that.
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
	var refusals []float64
	for i, over := range o.over {
		refusals = append(refusals, over.Refusal.P99)
		m.sayf("peak %.0f/s; at three times (%d left in time, %d meant): %.0f/s stored, %d of %d refused (%s), ack %s, client late p99 %.1f ms", o.peak[i].MessagesPerSecond,
			over.SentIn, over.Sent, over.MessagesPerSecond, over.Refused, over.Sent, over.Refusal, over.Ack, over.Late.P99)
	}
	goodput, refusal := ratio(o.over, o.peak, func(f figures) float64 { return f.MessagesPerSecond }), median(refusals)
	lastOver, lastWindow := o.over[len(o.over)-1], normalWindows-1
	for i := range normalWindows {
		m.sayf("delivery at %.1f times the peak, before: %s; in the window that ended %.1f s after the overload: %s", normalLoad, o.before[i].Delivery,
			o.after[i].Ended.Sub(lastOver.Ended).Seconds(), o.after[i].Delivery)
	}
	beforeP99, afterP99, recovered := medianP99(o.before), medianP99(o.after), o.after[lastWindow].Ended.Sub(lastOver.Ended)
	m.sayf("overload (medians): goodput %.2f of the peak, p99 of refusals %.0f ms, delivery p99 at %.1f times the peak %.1f ms before, %.1f ms within %.1f s of it",
		goodput, refusal, normalLoad, beforeP99, afterP99, recovered.Seconds())
	calm := o.before[lastWindow].Processes
	for _, name := range []string{"server", "postgres"} {
		m.sayf("memory of %s: at most %d MB before, %d MB in the overload; with all below it %d MB before, %d MB at its end", name,
			calm[name].RSSPeak>>20, lastOver.Processes[name].RSSPeak>>20, calm[name].PSS>>20, lastOver.Processes[name].PSS>>20)
	}
	require.True(t, o.judged.Checked)
	if !m.plan.judged {
		return
	}
	requireHonest(t, o.judged)
	for _, over := range o.over {
		requireHonest(t, over)
		require.GreaterOrEqual(t, float64(over.SentIn), leastOffered*float64(over.Sent), "the client did not offer the load")
		require.Positive(t, over.Refused, "three times the peak is too much")
	}
	require.GreaterOrEqual(t, goodput, leastGoodput, "goodput")
	require.LessOrEqual(t, refusal, mostRefusalP99*pace, "refusals are quick, in milliseconds")
	require.LessOrEqual(t, recovered, recoverWithin, "the windows after the overload")
	require.LessOrEqual(t, afterP99, normalTimes*beforeP99+normalDelay, "delivery p99 after the load has dropped, in milliseconds")
	require.LessOrEqual(t, lastOver.Processes["server"].RSSPeak>>20, 2*(calm["server"].RSSPeak>>20)+256, "memory in the overload, in MB")
	require.LessOrEqual(t, lastOver.Processes["postgres"].PSS>>20, 2*(calm["postgres"].PSS>>20)+256, "memory of PostgreSQL, in MB")
}

// overload is what was measured before, in and after one. Peaks are in the closed loop; over is at three times the first of
// them, without a record, judged once more with one.
type overload struct {
	before, peak, over, after []figures
	judged                    figures
}

func (m *measurer) overloaded(ours people) overload {
	var o overload
	peak := func() {
		f := m.load(ours, m.pairs("--check=false")...)
		m.whole(f)
		o.peak = append(o.peak, f)
	}
	at := func(times float64, warmup, duration time.Duration, args ...string) figures {
		rate := strconv.FormatFloat(max(o.peak[0].MessagesPerSecond*times, 1), 'f', 0, 64)
		return m.load(ours, append([]string{
			"--pairs", strconv.Itoa(m.plan.pairs), "--mode", "open", "--rate", rate, "--warmup", warmup.String(), "--duration", duration.String(),
		}, args...)...)
	}
	seconds := time.Duration(m.plan.seconds) * time.Second
	warm := min(seconds, 5*time.Second)
	over := func() { o.over = append(o.over, at(3, warm, seconds, "--check=false")) }
	normal := func() (windows []figures) {
		for range normalWindows {
			windows = append(windows, at(normalLoad, time.Second, min(seconds, normalWindow)))
			m.kept(windows[len(windows)-1])
		}
		return windows
	}
	peak()
	o.before = normal()
	over()
	for range (m.plan.rounds - 1) / 2 { // each first by turns, and the last is an overload
		over()
		peak()
		peak()
		over()
	}
	o.after = normal()
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
