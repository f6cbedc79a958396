package dev

import (
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/services/auth"
	"github.com/parleychat/parley/services/messaging"
	"github.com/parleychat/parley/services/user"
)

// Domains are the services of Parley: what the all-in-one process starts, in
// this order. It is the one list; a new domain gets a line here.
func Domains() []service.Definition {
	return []service.Definition{
		auth.Definition(),
		user.Definition(),
		messaging.Definition(),
	}
}
