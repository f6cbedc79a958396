package gateway

// The descriptors of all domains: what is linked here, and public by its access
// option, is routed. A test compares this list with the generated packages.
import (
	// Linked for their descriptors, which are the route table.
	_ "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	_ "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	_ "github.com/parleychat/parley/proto/gen/parley/user/v1"
)
