package user

import (
	"net/http"
	"time"

	"github.com/parleychat/parley/pkg/rpc"
)

// unstalled breaks a response off whose reader takes nothing of it for so long. In one
// process the only reader is the gateway, which does the same to its own clients and
// leaves then.
func unstalled(h http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(rpc.Unstalled(w, stall), r)
	})
}
