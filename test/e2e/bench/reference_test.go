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

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/test/e2e/system"
)

// envReference names a folder with another server and its own load client, in the folders reference and load: a chat server on
// the centrifuge library, one INSERT per message. They are built and measured in turns with the product; nothing is judged, for
// the two clients do not ask for the same.
const envReference = "PARLEY_BENCH_REFERENCE"

const referenceTable = `create table messages (id bigserial primary key, conv text not null, sender text not null, body text not null,
	created_at timestamptz not null default now()); create index on messages (conv, id)`

// reference is the other server, running.
type reference struct {
	m             *measurer
	client        string
	address, pids string
}

// referenceFigures are what its client prints.
type referenceFigures struct {
	Rate     float64 `json:"msg_per_s"`
	CPU      float64 `json:"cpu_s_per_1000_server_side"`
	Connects float64 `json:"conn_per_s"`
	Delivery struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
	} `json:"delivery_ms"`
}

// besideReference measures pairs and connects in turns with the reference.
func (m *measurer) besideReference(t *testing.T) {
	product := system.Start(t, system.OneProcess, system.Options{Env: manySockets()})
	pairs, n := strconv.Itoa(m.plan.pairs), strconv.Itoa(m.plan.silent)
	ours := m.seedOne(product, "reference", "--users", n, "--pairs", pairs)
	theirs := m.startReference(t, os.Getenv(envReference))
	bare := startBare(t, ours)
	idle := []string{"--scenario", "idle", "--conns", n, "--procs", "2", "--dials", "32", "--src-ips", "4", "--settle", "1s", "--sync=false"}
	steady := strconv.Itoa(min(500, 50*m.plan.pairs))
	for range m.plan.rounds {
		for _, one := range []struct{ ours, theirs []string }{
			{m.pairs("--mode", "closed", "--check=false"), []string{"-sc", "closed", "-pairs", pairs}},
			{m.pairs("--mode", "open", "--rate", steady, "--check=false"), []string{"-sc", "open", "-pairs", pairs, "-rate", steady}},
			{idle, []string{"-sc", "idle", "-n", n, "-settle", "1s"}},
		} {
			r := theirs.measure(append(one.theirs, "-dur", m.duration())...)
			f := m.load(ours, one.ours...)
			if r.Connects > 0 {
				m.sayf("reference %s: connects %.2f times (%.0f to %.0f/s)", one.theirs[1], f.ConnectsPerSecond/r.Connects, f.ConnectsPerSecond, r.Connects)
				continue
			}
			m.sayf("reference %s: rate %.2f times (%.0f to %.0f), CPU %.2f times (%.3f to %.3f), delivery p50 %.2f to %.2f, p99 %.2f to %.2f ms",
				one.theirs[1], f.MessagesPerSecond/r.Rate, f.MessagesPerSecond, r.Rate, f.cpu()/r.CPU, f.cpu(), r.CPU,
				f.Delivery.P50, r.Delivery.P50, f.Delivery.P99, r.Delivery.P99)
		}
		// What leastConnects is made of: how the reference and the yardstick compare.
		m.sayf("connects to the yardstick: %.0f/s", m.load(bare, idle...).ConnectsPerSecond)
	}
}

func (m *measurer) startReference(t *testing.T, folder string) *reference {
	t.Helper()
	for _, name := range []string{"reference", "load"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-C", filepath.Join(folder, name), "-o", filepath.Join(m.dir, "reference-"+name), ".")
		cmd.Env = append(os.Environ(), "GOWORK=off")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	server := testkit.PrivatePostgres(t)
	url := server.NewDatabase(t).AdminURL()
	require.NoError(t, execute(t.Context(), url, referenceTable))
	separator := "?"
	if strings.Contains(url, "?") {
		separator = "&"
	}
	address := freeAddress(t)
	cmd := exec.Command(filepath.Join(m.dir, "reference-reference"), "-addr", address, "-pg", url+separator+"pool_max_conns=20")
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it keeps nothing
		_ = cmd.Wait()
	})
	awaitListening(t, address)
	return &reference{m, filepath.Join(m.dir, "reference-load"), address, fmt.Sprintf("server=%d,pg=%d", cmd.Process.Pid, server.PID())}
}

// measure runs the reference's own client, whose answer is one line.
func (r *reference) measure(args ...string) (f referenceFigures) {
	r.m.t.Helper()
	r.m.calmDisk()
	args = append([]string{"-peer", "cfg", "-addr", r.address, "-pids", r.pids}, args...)
	cmd := exec.CommandContext(r.m.t.Context(), r.client, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	fmt.Fprintf(r.m.raw, "$ loadgen %s\n%s\n", strings.Join(args, " "), bytes.TrimSpace(out))
	require.NoError(r.m.t, err, log.String())
	require.NoError(r.m.t, json.Unmarshal(out, &f), string(out))
	return f
}
