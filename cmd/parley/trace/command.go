// Package trace is `parley trace`: it shows the newest sampled traces of running
// processes, those of several put together, so that the way of one message from
// socket to socket is one picture.
//
// It only reads the admin ports and, when asked, has them sample every call for a
// while. It stores nothing.
package trace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/pkg/lifecycle"
	"github.com/parleychat/parley/pkg/telemetry"
	"github.com/parleychat/parley/pkg/telemetry/traces"
)

const (
	askTimeout = 10 * time.Second
	// maxAnswer bounds what one process may answer.
	maxAnswer = 64 << 20
	// perProcess is how many traces each process is asked for. It is more than are
	// shown: what a process kept last is not always what another one did.
	perProcess = 500
)

// options are the flags.
type options struct {
	data   string
	admin  []string
	name   string
	last   int
	sample time.Duration
	json   bool
	id     string
}

// Command returns `parley trace`.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "trace [TRACE-ID]",
		Short: "Show where the time of a call went, from socket to socket",
		Long: "trace shows the newest sampled traces of a running \"parley dev\", or of processes by their admin ports: a list, and the\n" +
			"steps of the newest, or of the one with the id (a log line has it). One call in a hundred is sampled; \"parley dev --trace\"\n" +
			"samples all, and so does --sample for a while.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := lifecycle.Signals(cmd.Context())
			defer stop()
			if len(args) == 1 {
				o.id = args[0]
			}
			return run(ctx, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.data, "data", ".parley", "the data folder of a running parley dev")
	flags.StringSliceVar(&o.admin, "admin", nil, "the admin ports of processes (http://host:port,…) instead of --data")
	flags.StringVar(&o.name, "name", "SendMessage", "only traces with a step of this name; empty: all")
	flags.IntVar(&o.last, "last", 10, "how many traces to list")
	flags.DurationVar(&o.sample, "sample", 0, "first sample every call for so long, and wait for it")
	flags.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func run(ctx context.Context, o options, out, note io.Writer) error {
	if len(o.admin) == 0 {
		operator, err := dev.ReadOperator(o.data)
		if err != nil {
			return err
		}
		o.admin = []string{operator.Ready.Admin}
	}
	if o.last < 1 {
		return errors.New("--last is at least 1")
	}
	client := &http.Client{Timeout: askTimeout}
	if o.sample > 0 {
		if err := sample(ctx, client, o, note); err != nil {
			return err
		}
	}
	list, err := collect(ctx, client, o)
	if err != nil {
		return err
	}
	if o.json {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(list)
	}
	var text strings.Builder
	if err := traces.Show(&text, list, o.id != ""); err != nil {
		return err
	}
	_, err = io.WriteString(out, text.String())
	return err
}

// sample has all processes sample every call, and waits until they stop.
func sample(ctx context.Context, client *http.Client, o options, note io.Writer) error {
	if o.sample > traces.MaxRaise {
		return fmt.Errorf("--sample is at most %s", traces.MaxRaise)
	}
	for _, admin := range o.admin {
		address := admin + telemetry.TracesPath + "?ratio=1&for=" + url.QueryEscape(o.sample.String())
		if _, err := ask(ctx, client, http.MethodPost, address); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(note, "sampling every call for %s …\n", o.sample); err != nil {
		return fmt.Errorf("tell: %w", err)
	}
	timer := time.NewTimer(o.sample)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// collect asks every process, all at once, and puts together what belongs
// together.
func collect(ctx context.Context, client *http.Client, o options) ([]traces.Trace, error) {
	group, ctx := errgroup.WithContext(ctx)
	answers := make([][]traces.Span, len(o.admin))
	for i, admin := range o.admin {
		group.Go(func() error {
			// Not filtered by name there: a process may have the steps beside the one named.
			query := url.Values{"format": {"json"}, "limit": {fmt.Sprint(perProcess)}}
			if o.id != "" {
				query.Set("trace", o.id)
			}
			body, err := ask(ctx, client, http.MethodGet, admin+telemetry.TracesPath+"?"+query.Encode())
			if err != nil {
				return err
			}
			var list []traces.Trace
			if err := json.Unmarshal(body, &list); err != nil {
				return fmt.Errorf("traces of %s: %w", admin, err)
			}
			for _, t := range list {
				answers[i] = append(answers[i], t.Spans...)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	list := traces.Group(answers...)
	if o.id == "" && o.name != "" {
		list = slices.DeleteFunc(list, func(t traces.Trace) bool { return !t.Has(o.name) })
	}
	return list[:min(len(list), o.last)], nil
}

func ask(ctx context.Context, client *http.Client, method, address string) (body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for traces: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask for traces: %w", err)
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read traces: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s: %s", method, address, response.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}
