// Command user runs the user service alone; see services/user/README.md.
package main

import (
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/services/user"
)

func main() { service.Main(user.Definition()) }
