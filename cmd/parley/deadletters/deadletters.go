// Package deadletters is `parley dead-letters`: what a person does about events that a listener could not take.
//
// It speaks to a deployment's NATS, as its operator, and to nothing else. A letter stays until it is replayed or
// dropped; a replay does again only what has not been done, because listeners are idempotent. It changes nothing
// without a yes.
package deadletters

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/lifecycle"
)

const (
	// natsVariable holds the URL: an argument with a password in it could be read by every user of the machine.
	natsVariable = "PARLEY_NATS_URL"
	// reachWithin bounds the wait for a server, callWithin one question to it.
	reachWithin = 5 * time.Second
	callWithin  = time.Minute
	// pageSize letters are read, replayed or dropped at a time.
	pageSize = 500
	// mostAtOnce letters are taken by one --all.
	mostAtOnce = 100_000
)

type options struct {
	nats, credentials, data string

	filter event.DeadFilter
	asJSON bool
	all    bool
	yes    bool
}

// Command returns `parley dead-letters`.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "List, show, replay and drop events that a listener could not take",
		Long: "dead-letters works on the stream of a deployment's dead letters. NATS is named by " + natsVariable + " in the environment\n" +
			"(nats://operator:PASSWORD@host:4222) or by --nats and --creds; with --data it is that of a running `parley dev`.",
	}
	cmd.AddCommand(listCommand(), showCommand(), replayCommand(), dropCommand())
	return cmd
}

// reach adds the flags that every command has.
func (o *options) reach(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.nats, "nats", os.Getenv(natsVariable), "the URL of NATS; "+natsVariable+" when empty")
	flags.Lookup("nats").DefValue = "" // it may hold a password
	flags.StringVar(&o.credentials, "creds", "", "a NATS credentials file")
	flags.StringVar(&o.data, "data", ".parley", "the data folder of a running `parley dev`, unless --nats says otherwise")
	flags.BoolVar(&o.asJSON, "json", false, "print JSON, one letter or result a line")
}

// choose adds the flags that choose letters.
func (o *options) choose(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.filter.Service, "service", "", "letters of this service only")
	flags.StringVar(&o.filter.Listener, "listener", "", "of this listener only")
	flags.StringVar(&o.filter.Type, "type", "", "of events of this type only")
	flags.StringVar(&o.filter.EventID, "event", "", "of the event with this id only")
}

func listCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "list", Short: "List dead letters, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.filter.Limit < 1 {
				return errors.New("--limit: at least one")
			}
			return o.with(cmd, func(ctx context.Context, bus *event.Bus) error {
				return list(ctx, bus, o, cmd.OutOrStdout())
			})
		},
	}
	o.reach(cmd)
	o.choose(cmd)
	cmd.Flags().IntVar(&o.filter.Limit, "limit", 100, "how many at most")
	cmd.Flags().Uint64Var(&o.filter.After, "after", 0, "those after the letter with this number: the next page")
	return cmd
}

func showCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "show NUMBER", Short: "Show one dead letter with its event", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seqs, err := numbers(args)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, bus *event.Bus) error {
				d, err := bus.ShowDead(ctx, seqs[0])
				if err != nil {
					return err
				}
				return show(cmd.OutOrStdout(), d, o.asJSON)
			})
		},
	}
	o.reach(cmd)
	return cmd
}

func replayCommand() *cobra.Command {
	return change(doing{
		use: "replay", short: "Publish the events of dead letters again, and remove the letters",
		long: "Every listener of the type gets the event again; those that have done it do nothing. What fails again is parked again.",
		verb: "replay", done: "replayed", do: (*event.Bus).Replay,
	})
}

func dropCommand() *cobra.Command {
	return change(doing{
		use: "drop", short: "Remove dead letters for good",
		long: "What the listener would have done never happens. Look at the letters first.",
		verb: "drop", done: "dropped", do: (*event.Bus).Drop,
	})
}

// doing is what replay and drop differ in.
type doing struct {
	use, short, long, verb, done string
	do                           func(b *event.Bus, ctx context.Context, f event.DeadFilter) (int, error)
}

func change(c doing) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: c.use + " NUMBER... | --all [--service S] [--listener L] [--type T] [--event ID]", Short: c.short, Long: c.long,
		RunE: func(cmd *cobra.Command, args []string) error {
			seqs, err := numbers(args)
			if err != nil {
				return err
			}
			if o.all == (len(seqs) > 0) {
				return errors.New("name letters by their numbers, or all that the filters choose by --all")
			}
			return o.with(cmd, func(ctx context.Context, bus *event.Bus) error {
				chosen, err := o.chosen(ctx, bus, seqs)
				if err != nil {
					return err
				}
				return o.apply(ctx, cmd, bus, c, chosen)
			})
		},
	}
	o.reach(cmd)
	o.choose(cmd)
	cmd.Flags().BoolVar(&o.all, "all", false, "all letters that the filters choose, as of now")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "do not ask")
	return cmd
}

// chosen are the letters to change: those with the numbers, or all that fit now. What comes while they are
// changed, a failed replay for example, is not among them.
func (o *options) chosen(ctx context.Context, bus *event.Bus, seqs []uint64) ([]uint64, error) {
	if len(seqs) > 0 {
		for _, seq := range seqs {
			f := o.filter
			f.Seq = seq
			found, err := bus.ListDead(ctx, f)
			if err != nil {
				return nil, err
			}
			if len(found) == 0 {
				return nil, fmt.Errorf("%w that fits: %d", event.ErrNoDeadLetter, seq)
			}
		}
		return seqs, nil
	}
	f := o.filter
	f.Limit = pageSize
	for len(seqs) < mostAtOnce {
		page, err := bus.ListDead(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, d := range page {
			seqs = append(seqs, d.Seq)
			f.After = d.Seq
		}
		if len(page) < pageSize {
			break
		}
	}
	return seqs, nil
}

// apply asks, and then changes one letter after the other. What cannot be replayed, or was removed by somebody else
// meanwhile, does not stop it; an error of the way there does. The error tells how far it came and what is left.
func (o *options) apply(ctx context.Context, cmd *cobra.Command, bus *event.Bus, c doing, seqs []uint64) error {
	if len(seqs) == 0 {
		return report(cmd.OutOrStdout(), c.done, 0, o.asJSON)
	}
	if !o.yes {
		question := fmt.Sprintf("%s %d dead letters (numbers %d to %d)? [y/N] ", c.verb, len(seqs), seqs[0], seqs[len(seqs)-1])
		if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), question); err != nil {
			return err
		}
	}
	changed, gone := 0, 0
	var left []error
	for _, seq := range seqs {
		one, cancel := context.WithTimeout(ctx, callWithin)
		n, err := c.do(bus, one, event.DeadFilter{Seq: seq})
		cancel()
		changed += n
		switch {
		case errors.Is(err, event.ErrNotReplayable):
			left = append(left, err)
		case err != nil:
			return fmt.Errorf("%d of %d %s, then letter %d: %w", changed, len(seqs), c.done, seq, errors.Join(append(left, err)...))
		case n == 0:
			gone++
		}
	}
	if err := report(cmd.OutOrStdout(), c.done, changed, o.asJSON); err != nil {
		return err
	}
	if gone > 0 { // to the other stream: not a result
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d were removed by somebody else meanwhile, replayed or dropped\n", gone, len(seqs))
	}
	if len(left) > 0 {
		return fmt.Errorf("%d of %d are left, and can only be dropped: %w", len(left), len(seqs), errors.Join(left...))
	}
	return nil
}

// errNotConfirmed says that nothing was done.
var errNotConfirmed = errors.New("not confirmed: nothing was changed (--yes does not ask)")

func confirm(in io.Reader, out io.Writer, question string) error {
	if _, err := io.WriteString(out, question); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	answer, _ := bufio.NewReader(in).ReadString('\n') // an end without an answer is a no
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	default:
		return errNotConfirmed
	}
}

func numbers(args []string) ([]uint64, error) {
	var seqs []uint64
	for _, raw := range args {
		seq, err := strconv.ParseUint(raw, 10, 64)
		if err != nil || seq == 0 {
			return nil, fmt.Errorf("%q is not the number of a letter", raw)
		}
		seqs = append(seqs, seq)
	}
	return seqs, nil
}

// with connects to NATS, does something and closes the connection.
func (o *options) with(cmd *cobra.Command, do func(ctx context.Context, bus *event.Bus) error) error {
	ctx, stop := lifecycle.Signals(cmd.Context())
	defer stop()
	url := o.nats
	if url == "" {
		operator, err := dev.ReadOperator(o.data)
		if err != nil {
			return fmt.Errorf("%w (or set %s)", err, natsVariable)
		}
		url = operator.Ready.NATS
	}
	bus, err := event.Connect(ctx, event.Config{URL: url, CredentialsFile: o.credentials, Name: "parley-dead-letters"}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer bus.Close()
	reaching, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	if err := reach(reaching, bus); err != nil {
		return err
	}
	return do(ctx, bus)
}

// reach waits until the connection stands: it is made in the background.
func reach(ctx context.Context, bus *event.Bus) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := bus.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("reach the deployment: %w", err)
		}
	}
}
