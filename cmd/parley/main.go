// Command parley is the all-in-one: the whole product in one process for development, and the tools around it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/admin"
	"github.com/parleychat/parley/cmd/parley/deadletters"
	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/cmd/parley/load"
	"github.com/parleychat/parley/cmd/parley/seed"
	"github.com/parleychat/parley/cmd/parley/stack"
	"github.com/parleychat/parley/cmd/parley/trace"
)

func main() {
	err := root().ExecuteContext(context.Background())
	if exit, ok := errors.AsType[stack.ExitError](err); ok {
		os.Exit(int(exit))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "parley:", err)
		os.Exit(1)
	}
}

// commands are the subcommands, one constructor per file.
var commands = []func() *cobra.Command{
	dev.Command,
	stackCommand,
	seed.Command,
	admin.Command,
	deadletters.Command,
	load.Command,
	load.WorkerCommand,
	trace.Command,
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "parley",
		Short:         "Parley: a chat backend",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	for _, command := range commands {
		cmd.AddCommand(command())
	}
	return cmd
}
