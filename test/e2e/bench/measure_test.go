package bench

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/test/e2e/system"
)

// whole requires that every message was acknowledged and reached the other person: a side of a comparison that refuses
// some, or leaves some to be repaired, has less to do. Where figures are not judged the machine may be busy with other tests,
// and to refuse is right: then nothing may be without an outcome.
func (m *measurer) whole(f figures) {
	m.t.Helper()
	require.Positive(m.t, f.Acked)
	if !m.plan.judged {
		require.Equal(m.t, f.Sent, f.Acked+f.Refused+f.Unknown+f.NeverSent, "every message has an end")
		return
	}
	require.Equal(m.t, f.Sent, f.Acked, "sent and acknowledged")
	require.Equal(m.t, f.Acked, f.Delivered, "acknowledged and delivered")
}

// kept requires that no promise was broken.
func (m *measurer) kept(f figures) {
	m.t.Helper()
	require.True(m.t, f.Checked)
	require.Empty(m.t, f.Violations, f.Told)
	m.whole(f)
}

// inTurns measures two sides, each first in every other round: what the one leaves to do behind it must not always meet the
// other.
func (m *measurer) inTurns(ours, theirs people, args ...string) (us, them []figures) {
	m.t.Helper()
	for round := range m.plan.rounds {
		if round%2 == 0 {
			them = append(them, m.load(theirs, args...))
			us = append(us, m.load(ours, args...))
		} else {
			us = append(us, m.load(ours, args...))
			them = append(them, m.load(theirs, args...))
		}
	}
	return us, them
}

// ratio is the median of one figure of ours, round by round, to that of the yardstick.
func ratio(us, them []figures, of func(figures) float64) float64 {
	var list []float64
	for i := range us {
		list = append(list, of(us[i])/of(them[i]))
	}
	return median(list)
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// yardstick measures pairs in the closed loop and at a steady rate, in turns with the bare server.
func (m *measurer) yardstick(t *testing.T) {
	product := system.Start(t, system.OneProcess, system.Options{Env: manySockets()})
	ours := m.seedOne(product, "pairs", "--users", strconv.Itoa(2*m.plan.pairs), "--pairs", strconv.Itoa(m.plan.pairs))
	theirs := startBare(t, ours)
	steady := strconv.Itoa(min(500, 50*m.plan.pairs))
	for _, mode := range [][]string{{"--mode", "closed"}, {"--mode", "open", "--rate", steady}} {
		// Without a record: it costs the client a tenth, on the CPUs that are measured.
		us, them := m.inTurns(ours, theirs, m.pairs(append(mode, "--check=false")...)...)
		for i, f := range us {
			m.whole(f)
			m.whole(them[i])
			m.sayf("%s: %.0f messages/s (bare %.0f), CPU s per 1,000 %.3f (%.3f), delivery %s (%s), ack %s, client late p99 %.2f ms", mode[1],
				f.MessagesPerSecond, them[i].MessagesPerSecond, f.cpu(), them[i].cpu(), f.Delivery, them[i].Delivery, f.Ack, f.Late.P99)
		}
		m.kept(m.load(ours, m.pairs(mode...)...))
		rate := ratio(us, them, func(f figures) float64 { return f.MessagesPerSecond })
		cpu := ratio(us, them, figures.cpu)
		delay := ratio(us, them, func(f figures) float64 { return f.Delivery.P99 })
		m.sayf("%s, times the yardstick (medians): rate %.2f, CPU %.2f, p99 %.2f", mode[1], rate, cpu, delay)
		switch {
		case !m.plan.judged:
		case mode[1] == "closed":
			require.GreaterOrEqual(t, rate, leastRate, "messages a second")
			require.LessOrEqual(t, cpu, mostCPU, "CPU per message")
		default:
			require.LessOrEqual(t, delay, mostDelay, "delivery p99")
		}
	}
}

// connects measures how many connections a second the product in one process takes: with the check of the token, the upgrade
// and presence, in turns with the bare server, which checks nothing; and with the first Sync of a client beside that.
func (m *measurer) connects(t *testing.T) {
	product := system.Start(t, system.OneProcess, system.Options{Env: manySockets()})
	n := strconv.Itoa(m.plan.silent)
	ours := m.seedOne(product, "connects", "--users", n, "--circle", strconv.Itoa(m.plan.circle), "--wait", "10m")
	theirs := startBare(t, ours)
	args := []string{"--scenario", "idle", "--conns", n, "--procs", "2", "--dials", "32", "--src-ips", "4", "--settle", "1s"}
	us, them := m.inTurns(ours, theirs, append(args, "--sync=false")...)
	for i, f := range us {
		require.Zero(t, f.Failures+them[i].Failures)
		require.Equal(t, m.plan.silent, f.Alive)
		m.sayf("connects with token check: %.0f/s of %s (bare %.0f/s)", f.ConnectsPerSecond, n, them[i].ConnectsPerSecond)
	}
	synced := m.load(ours, args...)
	require.Zero(t, synced.Failures)
	rate := ratio(us, them, func(f figures) float64 { return f.ConnectsPerSecond })
	m.sayf("connects, times the yardstick (median): %.2f; with the first Sync of %d conversations: %.0f/s, Sync %s", rate, m.plan.circle,
		synced.ConnectsWithSync, synced.Sync)
	if m.plan.judged {
		require.GreaterOrEqual(t, rate, leastConnects, "connects a second")
	}
}

// silence measures what a gateway pays for connected people who have conversations, watch others and say nothing. It is a
// process of its own here: in one process, the embedded NATS and the services would be measured with it.
func (m *measurer) silence(t *testing.T) {
	product := system.Start(t, system.Separate, system.Options{Env: manySockets(), Gateways: 1, Messagings: 1, Straight: true})
	n := m.plan.silent
	silent := m.seedSeparate(product, "silent", "--users", strconv.Itoa(n), "--circle", strconv.Itoa(m.plan.circle), "--wait", "10m")
	f := m.load(silent, "--scenario", "idle", "--conns", strconv.Itoa(n), "--steps", fmt.Sprintf("%d,%d", n/3, 2*n/3), "--watch", strconv.Itoa(m.plan.watch),
		"--procs", "2", "--src-ips", "4", "--settle", strconv.Itoa(m.plan.settle)+"s", "--metrics", product.Process("gateway-1").Admin())
	require.Zero(t, f.Failures)
	require.Equal(t, n, f.Alive)
	require.EqualValues(t, n*m.plan.watch, f.Watches, "everybody watches as many as a client shows")
	require.Zero(t, f.Unseen, "and is told their state")
	bytes := f.Processes["gateway-1"].BytesPerConnection
	m.sayf("%d sockets, %d conversations and %d watches each: %.0f connects/s with Sync, %.0f bytes each in the gateway", n, m.plan.circle, m.plan.watch,
		f.ConnectsWithSync, bytes)
	if m.plan.judged {
		require.LessOrEqual(t, bytes, float64(mostBytes), "bytes per silent socket")
	}
}

// separate measures pairs with every service and a gateway in a process of its own.
func (m *measurer) separate(t *testing.T) {
	product := system.Start(t, system.Separate, system.Options{Env: manySockets(), Gateways: 1, Messagings: 1, Straight: true})
	ours := m.seedSeparate(product, "separate", "--users", strconv.Itoa(2*m.plan.pairs), "--pairs", strconv.Itoa(m.plan.pairs))
	f := m.load(ours, m.pairs("--check=false")...)
	m.whole(f)
	m.kept(m.load(ours, m.pairs()...))
	m.sayf("separate processes: %.0f messages/s, CPU s per 1,000 %.3f: %s; delivery %s", f.MessagesPerSecond, f.cpu(), f.shares(), f.Delivery)
}

// inPace measures, and gives how many times slower this machine was meanwhile than that of the goals, 1 if it was not. The
// yardstick says so, just before and just after: a shared machine may change its pace by a factor of two within minutes.
func (m *measurer) inPace(t *testing.T, yardstick people, measure func()) (pace float64) {
	t.Helper()
	rate := func() float64 {
		pairs := strconv.Itoa(m.plan.pairs)
		f := m.load(yardstick, "--pairs", pairs, "--warmup", "1s", "--duration", strconv.Itoa(min(m.plan.seconds, 5))+"s", "--check=false")
		m.whole(f)
		return f.MessagesPerSecond
	}
	before := rate()
	measure()
	after := rate()
	pace = max(1, 2*paceRate/(before+after))
	m.sayf("pace: the yardstick carried %.0f and %.0f messages/s just before and after, so a limit of 100 ms is %.0f ms here", before, after, 100*pace)
	return pace
}

// crowds have thousands of people on one gateway and on three say 200 messages a second among them. Nobody syncs or watches
// here, and each has one conversation.
func (m *measurer) crowds(t *testing.T) {
	for _, c := range m.plan.crowds {
		t.Run(fmt.Sprintf("%dOn%d", c.sockets, c.gateways), func(t *testing.T) {
			m.t = t
			m.crowd(t, c)
		})
	}
	m.t = t
}

func (m *measurer) crowd(t *testing.T, c crowd) {
	t.Helper()
	product := system.Start(t, system.Separate, system.Options{Env: manySockets(), Gateways: c.gateways, Messagings: 1, Straight: true})
	pairs := c.sockets / 2
	people := m.seedSeparate(product, fmt.Sprintf("crowd-%d", c.gateways), "--users", strconv.Itoa(2*pairs), "--pairs", strconv.Itoa(pairs), "--wait", "10m")
	var f figures
	pace := m.inPace(t, startBare(t, people), func() {
		f = m.load(people, "--pairs", strconv.Itoa(pairs), "--mode", "open", "--rate", "200", "--procs", "3", "--src-ips", "12",
			"--warmup", m.duration(), "--duration", m.duration())
	})
	m.kept(f)
	require.Equal(t, 2*pairs, f.Alive)
	m.sayf("%d sockets on %d gateways, %.0f messages/s: delivery %s; %.0f connects/s", f.Connections, c.gateways,
		f.MessagesPerSecond, f.Delivery, f.ConnectsPerSecond)
	if m.plan.judged {
		require.LessOrEqual(t, f.Delivery.P99, mostCrowdP99*pace, "delivery p99 in milliseconds")
	}
}

// manySockets lets everybody in at once: the limits would be measured, not the server.
func manySockets() []string {
	return []string{
		"PARLEY_GATEWAY_LIMIT_NODE_SOCKET_RATE=100000", "PARLEY_GATEWAY_LIMIT_NODE_SOCKET_BURST=100000",
		"PARLEY_GATEWAY_LIMIT_EXEMPT=127.0.0.0/8",
	}
}
