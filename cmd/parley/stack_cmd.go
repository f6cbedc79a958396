package main

import (
	"github.com/spf13/cobra"

	"github.com/parleychat/parley/cmd/parley/stack"
)

// stackCommand is `parley stack`.
func stackCommand() *cobra.Command { return stack.Command() }
