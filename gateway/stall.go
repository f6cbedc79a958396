package gateway

import (
	"net/http"

	"github.com/parleychat/parley/pkg/rpc"
)

// stallWrites times the longest write of a socket is how long a client may take
// nothing of a stream: a download over a bad network stands still for longer.
const stallWrites = 6

// unstalled bounds each write of a stream: a client that reads nothing more would hold
// a place at the service, too.
func (g *Gateway) unstalled(w http.ResponseWriter) http.ResponseWriter {
	return rpc.Unstalled(w, stallWrites*g.cfg.Socket.WriteTimeout)
}
