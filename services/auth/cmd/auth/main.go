// Command auth runs the auth service alone; see services/auth/README.md.
package main

import (
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/services/auth"
)

func main() { service.Main(auth.Definition()) }
