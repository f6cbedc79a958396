// Command messaging runs the messaging service alone; see services/messaging/README.md.
package main

import (
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/services/messaging"
)

func main() { service.Main(messaging.Definition()) }
