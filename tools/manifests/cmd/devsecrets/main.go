// Command devsecrets makes the secrets of the overlay for development, where they
// are missing. Run it in tools/manifests; the Tiltfile does.
package main

import (
	"fmt"
	"os"

	"github.com/parleychat/parley/tools/manifests/secrets"
	"github.com/parleychat/parley/tools/manifests/tree"
)

func main() {
	domains, err := tree.Domains("../..")
	if err == nil {
		err = secrets.Write("../../deploy/k8s/overlays/dev/secrets", domains)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "devsecrets:", err)
		os.Exit(1)
	}
}
