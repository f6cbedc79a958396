package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/cmd/parley/crowd"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	s := startSystem(t, 560)
	t.Run("PairsThatTakeTurns", func(t *testing.T) { t.Parallel(); testClosed(t, s) })
	t.Run("ARateOverTwoProcesses", func(t *testing.T) { t.Parallel(); testOpen(t, s) })
	t.Run("AppsAreOpenedBeside", func(t *testing.T) { t.Parallel(); testStarts(t, s) })
	t.Run("Silence", func(t *testing.T) { t.Parallel(); testIdle(t, s) })
	t.Run("AnEntryThatAClientLostIsReported", func(t *testing.T) { t.Parallel(); testForgotten(t, s) })
	t.Run("LostPushesAreRepaired", func(t *testing.T) { t.Parallel(); testDropped(t, s) })
	t.Run("CutConnectionsComeBack", func(t *testing.T) { t.Parallel(); testCut(t, s) })
	t.Run("CutConnectionsAtARate", func(t *testing.T) { t.Parallel(); testCutAtARate(t, s) })
	t.Run("OneNumberOfConnections", func(t *testing.T) { t.Parallel(); testAlone(t, s) })
	t.Run("AFullRecordEndsTheLoad", func(t *testing.T) { t.Parallel(); testFull(t, s) })
	t.Run("AProcessThatHasGone", func(t *testing.T) { t.Parallel(); testGone(t, s) })
	t.Run("TokensAreRenewedInTime", func(t *testing.T) { t.Parallel(); testRenewed(t, s) })
	t.Run("TheProgramPrintsItsReport", func(t *testing.T) { t.Parallel(); testProgram(t, s) })
}

func testClosed(t *testing.T, s *system) {
	t.Helper()
	r := runLoad(t, s.options(0), plant{})
	require.Empty(t, r.Violations, r.Told)
	require.True(t, r.Checked)
	require.Positive(t, r.Acked)
	require.Equal(t, r.Sent, r.Acked)
	require.Positive(t, r.SentIn)
	require.Equal(t, r.Acked, r.Delivered+r.PushesMissed)
	require.Equal(t, r.Ack.Count, r.Acked)
	require.Equal(t, r.Acked, r.Delivery.Count)
	require.GreaterOrEqual(t, r.Processes["server"].RSSPeak, r.Processes["server"].RSS/2)
	require.Positive(t, r.Processes["postgres"].PSS)
	require.Positive(t, r.Ended.Unix())
	require.LessOrEqual(t, r.Ack.P50, r.Ack.P99)
	require.LessOrEqual(t, r.Ack.P99, r.Ack.Max)
	require.GreaterOrEqual(t, r.Judged, r.Acked)
	require.Equal(t, 40, r.Connections)
	require.Equal(t, 40, r.AliveAtEnd)
	require.Positive(t, r.Processes["server"].CPUSeconds)
	require.Positive(t, r.Processes["postgres"].RSS)
	require.Positive(t, r.Processes[s.Admin].RSS)
	require.Positive(t, r.ClientMicros)
}

// People who open the app read profiles and lists, which the servers have at hand.
func testStarts(t *testing.T, s *system) {
	t.Helper()
	o := s.options(460)
	o.Mode, o.Rate, o.Starts, o.Warmup = modeOpen, 10, 40, time.Second
	r := runLoad(t, o, plant{})
	require.Empty(t, r.Violations, r.Told)
	require.Empty(t, r.Errors)
	require.InDelta(t, 80, r.Start.Count, 4, "40 a second for two seconds")
	require.Positive(t, r.StartsPerSecond)
	profiles := r.Caches["user.profile"]
	require.Positive(t, profiles.Requests, "how many fall into the measured time is the machine's business")
	require.Greater(t, profiles.HitRate, 0.8, "profiles: %+v", r.Caches)
	require.Positive(t, r.Caches["messaging.entry"].Hits)
}

func TestCachesOfSeveralProcesses(t *testing.T) {
	t.Parallel()
	all := map[string]CacheUse{}
	for range 2 {
		addCaches(all, []byte(`# TYPE cache_requests_total counter
cache_requests_total{cache="user.profile",otel_scope_name="x",result="hit"} 7
cache_requests_total{cache="user.profile",otel_scope_name="x",result="shared"} 1
cache_requests_total{cache="user.profile",otel_scope_name="x",result="miss"} 2
cache_requests_total{otel_scope_name="x",result="away",cache="b"} 1e+01
cache_requests_totally{cache="c",result="hit"} 5
`))
	}
	require.Equal(t, map[string]CacheUse{"user.profile": {Requests: 20, Hits: 16}, "b": {Requests: 20}}, all)
	r := &Report{}
	r.cached(map[string]CacheUse{"user.profile": {Requests: 10, Hits: 10}, "b": {Requests: 20}}, all)
	require.Equal(t, map[string]CacheUse{"user.profile": {Requests: 10, Hits: 6, HitRate: 0.6}}, r.Caches)
}

func testOpen(t *testing.T, s *system) {
	t.Helper()
	o := s.options(40)
	o.Mode, o.Procs, o.Warmup = modeOpen, 2, time.Second
	r := runLoad(t, o, plant{})
	require.Empty(t, r.Violations, r.Told)
	require.InDelta(t, 200, r.Sent, 4, "100 a second for two seconds, whatever the server does")
	require.Equal(t, r.Sent, r.Acked)
	require.Equal(t, r.Sent, r.Late.Count, "how late each left is told")
	require.InDelta(t, 200, r.SentIn, 20)
	require.InDelta(t, 300, r.Judged, 6, "the warm-up is judged, too")
}

func testIdle(t *testing.T, s *system) {
	t.Helper()
	o := s.options(80)
	o.Scenario, o.Steps, o.Settle, o.SrcIPs, o.Watch = scenarioIdle, []int{40, 70}, 50*time.Millisecond, "3", 6
	r := runLoad(t, o, plant{})
	require.Equal(t, 100, r.Connections)
	require.Equal(t, 100, r.AliveAtEnd)
	require.Positive(t, r.ConnectsWithSync)
	require.Zero(t, r.ConnectsPerSecond, "the rate is one with Sync, and is called so")
	require.EqualValues(t, 100, r.Sync.Count, "every client calls Sync once after its welcome")
	require.EqualValues(t, 600, r.Watching, "each watches six")
	require.Zero(t, r.Unseen)
	require.Empty(t, r.Errors)
	require.Len(t, r.Steps, 3)
	require.Equal(t, 40, r.Steps[0].Connections)
	require.Contains(t, r.Steps[2].Usage, "server")
}

func testForgotten(t *testing.T, s *system) {
	t.Helper()
	var forgotten atomic.Int64
	r := runLoad(t, s.options(180), plant{forget: func(seq int64) bool { return seq == 3 && forgotten.Add(1) == 1 }})
	require.Positive(t, forgotten.Load())
	require.NotEmpty(t, r.Violations)
	require.True(t, r.broken())
	require.Contains(t, r.Violations, "hole")
	require.NotEmpty(t, r.Told)
	var out bytes.Buffer
	require.NoError(t, r.print(&out))
	require.Contains(t, out.String(), "hole in ")
}

func testDropped(t *testing.T, s *system) {
	t.Helper()
	var n, dropped atomic.Int64
	r := runLoad(t, s.options(220), plant{dropPush: func(*entry) bool {
		if n.Add(1)%50 != 0 {
			return false
		}
		dropped.Add(1)
		return true
	}})
	require.Positive(t, dropped.Load())
	require.Empty(t, r.Violations, r.Told)
	require.Positive(t, r.PushesMissed, "what came by ListEvents alone")
	require.Equal(t, r.Acked, r.Delivered+r.PushesMissed)
	require.Equal(t, r.Acked, r.Delivery.Count, "with the time of those that were repaired, and of those that nobody repaired in time")
	require.Greater(t, r.Delivery.Max, 1000.0*patience.Seconds()/2, "which is what a lost push costs")
}

func testCut(t *testing.T, s *system) {
	t.Helper()
	o := s.options(260)
	o.Duration = 4 * time.Second
	r := runLoad(t, o, plant{running: func(r *run) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := 0; i < len(r.sockets); i += 4 {
			_ = r.sockets[i].ws.NetConn().Close()
		}
	}})
	require.Empty(t, r.Violations, r.Told)
	require.EqualValues(t, 10, r.Disconnects)
	require.Equal(t, 40, r.AliveAtEnd, "all have come back")
	require.Equal(t, r.Sent, r.Acked+r.Unknown)
}

// testCutAtARate cuts everybody's connection once in the open loop: what was meant to leave meanwhile leaves later, with
// the delay in its time.
func testCutAtARate(t *testing.T, s *system) {
	t.Helper()
	o := s.options(500)
	o.Mode, o.Rate, o.Duration = modeOpen, 200, 4*time.Second
	r := runLoad(t, o, plant{running: func(r *run) {
		for _, s := range r.connected() {
			_ = s.ws.NetConn().Close()
		}
	}})
	require.Empty(t, r.Violations, r.Told)
	require.EqualValues(t, 40, r.Disconnects)
	require.InDelta(t, 800, r.Sent, 16, "whatever happens to connections")
	require.Equal(t, r.Sent, r.Acked+r.Refused+r.Unknown+r.NeverSent)
	require.Positive(t, r.Errors["not connected"])
	require.Greater(t, r.Ack.Max, 300.0, "forty people do not all come back within a third of a second")
}

// testAlone measures one number of connections, without Sync and steps.
func testAlone(t *testing.T, s *system) {
	t.Helper()
	o := s.options(420)
	o.Scenario, o.Conns, o.Settle, o.Sync = scenarioIdle, 40, 50*time.Millisecond, false
	r := runLoad(t, o, plant{})
	require.Positive(t, r.ConnectsPerSecond)
	require.Zero(t, r.ConnectsWithSync)
	require.Zero(t, r.Sync.Count)
	require.Len(t, r.Steps, 2, "none and all")
	require.NotZero(t, r.Processes["server"].BytesPerConnection)
}

func testFull(t *testing.T, s *system) {
	t.Helper()
	o := s.options(300)
	o.Duration, o.RecordLimit = time.Minute, 100
	began := time.Now()
	r := runLoad(t, o, plant{})
	require.True(t, r.Full)
	require.Empty(t, r.Violations, r.Told)
	require.EqualValues(t, 100, r.Judged)
	require.Less(t, time.Since(began), 50*time.Second)
}

func testGone(t *testing.T, s *system) {
	t.Helper()
	o := s.options(540)
	o.Pairs, o.PIDs = 10, fmt.Sprintf("server=%d,postgres=2147483647", s.PIDs["stack"]) // more than Linux gives
	_, err := runPlanted(t.Context(), o, io.Discard, plant{})
	require.ErrorContains(t, err, "there is no process 2147483647")
}

func testRenewed(t *testing.T, s *system) {
	t.Helper()
	people, mint, err := crowd.Read(s.people, 350, 40)
	require.NoError(t, err)
	mint.LifeSeconds = 10 // the last two of them are for a busy machine to renew in
	for i := range people {
		require.NoError(t, mint.Renew(&people[i], time.Now()))
	}
	o := s.options(0)
	o.UsersFile, o.Duration = filepath.Join(t.TempDir(), "short.jsonl"), 12*time.Second
	// At a rate that a busy machine keeps up with: a lane that is behind refuses, which is an error here.
	o.Mode, o.Rate = modeOpen, 40
	require.NoError(t, crowd.Write(o.UsersFile, people, mint))
	r := runLoad(t, o, plant{})
	require.Empty(t, r.Violations, r.Told)
	require.GreaterOrEqual(t, r.Renewed, int64(40))
	require.Zero(t, r.Disconnects, r.Errors)
	require.Empty(t, r.Errors)
}

func testProgram(t *testing.T, s *system) {
	t.Helper()
	cmd := program(t, "load", "--url", s.Socket, "--users-file", s.people, "--skip", "340", "--pairs", "4", "--duration", "1500ms", "--warmup", "0s", "--json")
	var progress bytes.Buffer
	cmd.Stderr = &progress
	out, err := cmd.Output()
	require.NoError(t, err, progress.String())
	var r Report
	require.NoError(t, json.Unmarshal(out, &r))
	require.Positive(t, r.MessagesPerSecond)
	require.True(t, r.Checked)
	require.Contains(t, progress.String(), "acked/s")
	info, err := os.Stat(s.people)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
	out, err = program(t, "seed", "--auth-database-url", "postgres://nowhere/parley", "--out", s.people).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "--force")
}

// A server that stands still for a second must not get a rest: in the open loop that second is full of
// messages that were meant to leave in it, and their latency counts from then.
func TestNoCoordinatedOmission(t *testing.T) {
	t.Parallel()
	s := startSystem(t, 40)
	o := s.options(0)
	o.Mode, o.Duration, o.PIDs, o.Metrics = modeOpen, 3*time.Second, "", nil
	r := runLoad(t, o, plant{running: func(*run) {
		if s.cmd.Process.Signal(syscall.SIGSTOP) == nil {
			time.AfterFunc(time.Second, func() { _ = s.cmd.Process.Signal(syscall.SIGCONT) })
		}
	}})
	require.Empty(t, r.Violations, r.Told)
	require.InDelta(t, 300, r.Sent, 6)
	require.Greater(t, r.Ack.P95, 500.0, "a tenth of all messages waited for most of the second")
	require.Greater(t, r.Ack.Max, 900.0)
}
