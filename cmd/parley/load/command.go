// Package load is `parley load`: many clients that send, receive and judge.
//
// It is a client like any other: it uses what docs/protocol.md says, in the binary subprotocol, and nothing
// else. It measures what users would (acknowledgement and delivery, counted from when a message was meant
// to leave), reads what the server processes used, and ends with the judge of package history: every message
// is recorded, every log read again.
//
// One client process has one goroutine per connection and decodes frames by hand, because it shares the
// machine with what it measures. A record takes about 110 bytes a message; when it is full the load ends, it is
// never thinned out.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/crowd"
	"github.com/parleychat/parley/pkg/lifecycle"
)

// ErrBroken is returned when the judge found broken promises; the report tells them.
var ErrBroken = errors.New("the system broke promises: see the report")

// Command returns `parley load`.
func Command() *cobra.Command {
	o := Options{}
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Put load on a deployment, measure and judge it",
		Long: "load connects many people of a file that `parley seed` wrote, lets pairs talk (direct) or be silent (idle), and reports\n" +
			"rates, latencies, what the server processes used, and every broken promise. It exits with 1 if one was broken.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := lifecycle.Signals(cmd.Context())
			defer stop()
			end, err := profile(o.CPUProfile)
			if err != nil {
				return err
			}
			defer end()
			return execute(ctx, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Scenario, "scenario", scenarioDirect, "direct (pairs talk) or idle (everybody is connected and silent)")
	flags.StringVar(&o.URL, "url", "", "the socket of a gateway or balancer; several, comma separated, share the people (default: of --data, or "+defaultURL+")")
	flags.StringVar(&o.Data, "data", "", "the data folder of a running `parley dev`: gives --url, --pids and --metrics where they are not set")
	flags.StringVar(&o.UsersFile, "users-file", "users.jsonl", "the people, as `parley seed` wrote them")
	flags.IntVar(&o.Skip, "skip", 0, "leave out the first people of the file")
	flags.IntVar(&o.Conns, "conns", 1000, "idle: how many connections")
	flags.IntSliceVar(&o.Steps, "steps", nil, "idle: numbers of connections at which to measure, for example 5000,10000,15000; the last is --conns")
	flags.DurationVar(&o.Settle, "settle", 10*time.Second, "idle: how long to wait before memory is measured")
	flags.BoolVar(&o.Sync, "sync", true, "idle: call Sync after the welcome, as clients do; the rate of connects is then with Sync")
	flags.IntVar(&o.Watch, "watch", 0, "idle: people whose presence each connection watches, as clients do with those on the screen")
	flags.IntVar(&o.Pairs, "pairs", 200, "direct: how many pairs")
	flags.StringVar(&o.Mode, "mode", modeClosed, "direct: closed (a pair sends its next message after the last) or open (at --rate, whatever happens)")
	flags.StringVar(&o.Wait, "wait", "both", "closed: wait for the ack, the delivery or both")
	flags.Float64Var(&o.Rate, "rate", 500, "open: messages a second")
	flags.Float64Var(&o.Starts, "starts", 0, "direct: beside the messages, apps that are opened a second: list of conversations, profiles, newest messages")
	flags.DurationVar(&o.Warmup, "warmup", 3*time.Second, "direct: load that is not measured, at first")
	flags.DurationVar(&o.Duration, "duration", 15*time.Second, "direct: the measured time")
	flags.IntVar(&o.Size, "size", 100, "direct: bytes of a message's text")
	flags.IntVar(&o.Procs, "procs", 1, "client processes to spread the connections over; each may open as many files as `ulimit -n` says")
	flags.IntVar(&o.Dials, "dials", 32, "connections that each process opens at once")
	flags.StringVar(&o.SrcIPs, "src-ips", "", "source addresses, comma separated, or n for 127.0.0.2 and those after it")
	flags.StringVar(&o.PIDs, "pids", "", "server processes on this machine, as server=PID,postgres=PID: CPU with children, memory")
	flags.StringSliceVar(&o.Metrics, "metrics", nil, "admin ports of server processes (http://host:port): CPU and memory from their metrics")
	flags.BoolVar(&o.JSON, "json", false, "print the report as JSON")
	flags.BoolVar(&o.Quiet, "quiet", false, "show no progress")
	flags.BoolVar(&o.Check, "check", true, "record everything and judge it at the end")
	flags.Int64Var(&o.RecordLimit, "record-limit", 5_000_000, "messages to record at most, 110 bytes each; the load ends when it is reached")
	flags.StringVar(&o.CPUProfile, "cpu-profile", "", "write a CPU profile of this process to a file; with --procs 1 that is the client")
	flags.Uint64Var(&o.Seed, "seed", 1, "for everything drawn by chance")
	return cmd
}

// workerPercent is Go's GOGC of a client process: a collection of its own delays what it measures, and a socket is
// small here.
const workerPercent = 200

// WorkerCommand returns the hidden command that client processes run as.
func WorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use: workerCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(workerPercent)
			}
			return serve(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), plant{})
		},
	}
}

func execute(ctx context.Context, o Options, out, progress io.Writer) error {
	if err := o.find(); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if o.Quiet {
		progress = io.Discard
	}
	report, err := Run(ctx, o, progress)
	if err != nil {
		return err
	}
	if o.JSON {
		err = json.NewEncoder(out).Encode(report)
	} else {
		err = report.print(out)
	}
	if err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	return report.fault()
}

// Run does what the options say and returns the report, also if promises were broken. progress gets a line a second.
func Run(ctx context.Context, o Options, progress io.Writer) (*Report, error) {
	return runPlanted(ctx, o, progress, plant{})
}

// runPlanted is Run with faults of our own.
func runPlanted(ctx context.Context, o Options, progress io.Writer, plant plant) (_ *Report, err error) {
	people, mint, err := crowd.Read(o.UsersFile, o.Skip, o.people())
	if err != nil {
		return nil, err
	}
	if err := refresh(people, mint); err != nil {
		return nil, err
	}
	watched, err := watch(o.PIDs, o.Metrics)
	if err != nil {
		return nil, err
	}
	board := newBoard(progress)
	shown, hide := context.WithCancel(ctx)
	defer hide()
	go board.show(shown)
	fleet, err := startFleet(ctx, o, people, mint, uint16(rand.Uint32()&0xfff), board, plant)
	defer func() { err = errors.Join(err, fleet.stop()) }()
	if err != nil {
		return nil, err
	}
	c := &course{
		o: o, fleet: fleet, watched: watched, board: board,
		report: &Report{Scenario: o.Scenario, At: time.Now(), Command: strings.Join(os.Args, " "), Seed: o.Seed, Machine: machine(), Procs: o.Procs},
	}
	if o.Scenario == scenarioIdle {
		err = c.idle(ctx)
	} else {
		err = c.direct(ctx)
	}
	c.report.Machine.LoadAfter = loadAverage()
	return c.report, err
}

// refresh mints tokens for those whose token may end soon, before anything is measured.
func refresh(people []crowd.Person, mint crowd.Mint) error {
	enough := time.Now().Add(time.Duration(mint.LifeSeconds) * time.Second / 2)
	for i := range people {
		if people[i].Expires.After(enough) {
			continue
		}
		if err := mint.Renew(&people[i], time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// profile starts a CPU profile of this process, if a file is named.
func profile(path string) (end func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("write the profile: %w", err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(fmt.Errorf("start the profile: %w", err), file.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = file.Close() // a profile that is cut short is seen by whoever reads it
	}, nil
}
