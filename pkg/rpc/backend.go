package rpc

import (
	"net/http"

	"connectrpc.com/connect"
)

// Backend is one service as its callers reach it. HTTP is for Connect clients,
// Transport for proxies; URL is the base of both ("http://user").
type Backend struct {
	HTTP      connect.HTTPClient
	Transport http.RoundTripper
	URL       string
}

// Dialer finds services by name. An unknown name gives a backend whose calls
// fail with unavailable, so that the order in which things start does not
// matter.
type Dialer interface {
	Backend(service string) Backend
}

// directClient is the HTTP client of a transport, without what http.Client adds
// per call (redirects, cookies): no RPC needs them.
type directClient struct{ transport http.RoundTripper }

// Do sends one request.
func (c directClient) Do(r *http.Request) (*http.Response, error) {
	return c.transport.RoundTrip(r) //nolint:wrapcheck // the transport's errors are read by connect
}

func newBackend(url string, transport http.RoundTripper) Backend {
	return Backend{HTTP: directClient{transport}, Transport: transport, URL: url}
}
