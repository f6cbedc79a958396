// Package dev is the whole product in one process: gateway and all services in
// this one, and the servers that they need (package stack).
//
// It is the other shape of the same code: services and gateway are started by the
// functions that their own programs use, and are only handed other dependencies.
// It owns a folder with data, secrets and the log. It is for development; nothing
// of it runs in production.
package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/stack"
	"github.com/parleychat/parley/pkg/lifecycle"
)

// Options are the flags of `parley dev`.
type Options struct {
	// Listen and AdminListen are host:port; port 0 picks a free one.
	Listen, AdminListen string
	// Data is the folder for everything that is kept.
	Data string
	// Fresh wipes it first.
	Fresh bool
	// JSON prints one line of JSON instead of the banner when ready.
	JSON bool
	// Trace samples every call, for `parley trace`.
	Trace bool
	// Verbose copies the log to standard error.
	Verbose bool
}

// Command returns `parley dev`.
func Command() *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, with nothing to install or configure",
		Long: "dev runs the gateway, all services and NATS in one process, PostgreSQL and, on Linux where it is installed, redis-server as its\n" +
			"children (without one, a slower server of the Redis protocol inside), and keeps its data in a folder.\n" +
			"Settings of services and gateway can be given by their PARLEY_… variables.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := lifecycle.Signals(cmd.Context())
			defer stop()
			return run(ctx, o, os.Environ(), cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Listen, "listen", "127.0.0.1:8080", "where the gateway listens")
	flags.StringVar(&o.AdminListen, "admin-listen", "127.0.0.1:8081", "where health, metrics and profiles are served")
	flags.StringVar(&o.Data, "data", ".parley", "the folder for data, secrets and the log")
	flags.BoolVar(&o.Fresh, "fresh", false, "wipe the data first")
	flags.BoolVar(&o.JSON, "json", false, "print one line of JSON when ready, instead of the banner")
	flags.BoolVar(&o.Trace, "trace", false, "trace every call; \"parley trace\" shows the newest")
	flags.BoolVarP(&o.Verbose, "verbose", "v", false, "copy the log to standard error")
	return cmd
}

// Ready is what is printed when everything serves.
type Ready struct {
	Gateway string `json:"gateway"`
	Socket  string `json:"socket"`
	Admin   string `json:"admin"`
	Mails   string `json:"mails"`
	Log     string `json:"log"`
	Data    string `json:"data"`
	stack.Endpoints
	Accounts []Account `json:"accounts"`
}

// print tells a person, or a program, where everything is.
func (r Ready) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	_, err := fmt.Fprintf(out, `
  Parley is ready.

  API        %s   (Connect, gRPC, gRPC-Web; JSON by POST)
  WebSocket  %s
  Admin      %s   (/readyz /metrics /debug/traces /debug/pprof)
  Mails      %s
`, r.Gateway, r.Socket, r.Admin, r.Mails)
	for i, a := range r.Accounts {
		label := ""
		if i == 0 {
			label = "Accounts"
		}
		_, werr := fmt.Fprintf(out, "  %-9s  %s / %s\n", label, a.Username, a.Password)
		err = errors.Join(err, werr)
	}
	_, werr := fmt.Fprintf(out, "  Log        %s\n  Data       %s   (--fresh wipes it)\n\n  Ctrl-C stops everything.\n\n", r.Log, r.Data)
	return errors.Join(err, werr)
}

// run starts everything, tells that it is ready and waits for ctx or a failure.
func run(ctx context.Context, o Options, environ []string, out io.Writer) error {
	lifecycle.TuneCollector(ctx)
	shareProcessors()
	// Open to all, because the database runs as another user when we are root.
	if err := os.MkdirAll(o.Data, 0o755); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if o.Fresh {
		if err := wipe(o.Data); err != nil {
			return err
		}
	}
	p, err := start(ctx, o, environ)
	switch {
	case ctx.Err() != nil && p == nil:
		return nil // told to stop before it was ready
	case err != nil:
		return err
	}
	withdraw, err := announce(o.Data, p.ready)
	if err != nil {
		return errors.Join(err, p.stop())
	}
	p.onStop(withdraw)
	if err := p.ready.print(out, o.JSON); err != nil {
		return errors.Join(fmt.Errorf("print where everything is: %w", err), p.stop())
	}
	return p.wait(ctx)
}
