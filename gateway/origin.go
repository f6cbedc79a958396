package gateway

import (
	"net/http"
	"slices"
	"strings"
)

const (
	corsMethods = "GET, POST"
	// corsHeaders is what Connect and gRPC-Web clients send.
	corsHeaders = "Authorization, Content-Type, Connect-Protocol-Version, Connect-Timeout-Ms, Connect-Accept-Encoding, " +
		"Connect-Content-Encoding, Content-Encoding, Grpc-Timeout, X-Grpc-Web, X-User-Agent"
	// corsExposed is what they read from answers.
	corsExposed = "Content-Encoding, Connect-Content-Encoding, Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Retry-After"
	// corsMaxAge is how long a browser remembers, in seconds; Chromium's limit.
	corsMaxAge = "7200"
)

// originAllowed is whether a request may come from where it comes: from an
// origin on the list, compared as a whole, or from no browser at all.
func (g *Gateway) originAllowed(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	switch len(origins) {
	case 0:
		return true
	case 1:
		return slices.Contains(g.cfg.Origins, origins[0])
	default:
		return false
	}
}

// cors writes what a browser needs to see the answer, and answers preflights.
// There are no cookies, so credentials are never allowed.
func (g *Gateway) cors(w http.ResponseWriter, r *http.Request) (answered bool) {
	if r.Header.Get("Origin") == "" {
		return false
	}
	w.Header().Add("Vary", "Origin")
	allowed := g.originAllowed(r)
	if allowed {
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Set("Access-Control-Expose-Headers", corsExposed)
	}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	if !allowed {
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	w.Header().Set("Access-Control-Allow-Methods", corsMethods)
	w.Header().Set("Access-Control-Allow-Headers", corsHeaders)
	w.Header().Set("Access-Control-Max-Age", corsMaxAge)
	w.WriteHeader(http.StatusNoContent)
	return true
}

// bearer is the token of a request, "" without one.
func bearer(r *http.Request) string {
	const scheme = "Bearer "
	value := r.Header.Get("Authorization")
	if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return ""
	}
	return strings.TrimSpace(value[len(scheme):])
}
