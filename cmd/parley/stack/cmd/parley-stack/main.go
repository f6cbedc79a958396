// Command parley-stack is `parley stack` alone. The test kit builds and starts this one: it links no service,
// so it builds in a moment and a service that does not compile cannot break the tests of the others.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/parleychat/parley/cmd/parley/stack"
)

func main() {
	err := stack.Command().ExecuteContext(context.Background())
	if exit, ok := errors.AsType[stack.ExitError](err); ok {
		os.Exit(int(exit))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "parley-stack:", err)
		os.Exit(1)
	}
}
