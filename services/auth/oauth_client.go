package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

const (
	// providerBytes bounds an answer of a provider; the largest are key sets.
	providerBytes     = 1 << 20
	providerRedirects = 3
	providerDial      = 5 * time.Second
)

var errAnswerTooLarge = errors.New("the provider's answer is too large")

// newProviderClient makes the one client with which this process speaks to strangers' servers. It goes through no
// proxy of the environment, follows few redirects and never from https to http, reads bounded answers, and reaches
// no address of a private network: what it connects to is judged after the name was resolved, so neither a name
// nor a redirect leads into our own network.
func newProviderClient(timeout time.Duration, allowPrivate bool) *http.Client {
	dialer := &net.Dialer{Timeout: providerDial}
	if !allowPrivate {
		dialer.Control = func(_, address string, _ syscall.RawConn) error { return publicOnly(address) }
	}
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: providerDial, ResponseHeaderTimeout: timeout,
		MaxIdleConns: 16, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &http.Client{
		Transport: &boundedTransport{next: transport, plain: allowPrivate}, Timeout: timeout,
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > providerRedirects {
				return errors.New("the provider redirects too often")
			}
			return nil
		},
	}
}

// publicOnly refuses what is not a unicast address of the internet.
func publicOnly(address string) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %q: %w", address, err)
	}
	if !isPublic(target.Addr()) {
		return errors.New("the provider is at an address of a private network")
	}
	return nil
}

// notPublic are the ranges that netip has no method for: shared address space (carriers, clouds), protocol
// assignments, documentation, benchmarking, the future; and IPv6 that carries IPv4 addresses of any kind.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("2001::/32"),
}

func isPublic(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, prefix := range notPublic {
		if prefix.Contains(addr) {
			return false
		}
	}
	return true
}

// boundedTransport refuses plain http, unless it is allowed, and cuts answers off that are too large.
type boundedTransport struct {
	next  http.RoundTripper
	plain bool
}

func (t *boundedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !t.plain {
		return nil, errors.New("the provider is asked over https only")
	}
	res, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	res.Body = &boundedBody{ReadCloser: res.Body, left: providerBytes}
	return res, nil
}

// CloseIdleConnections makes http.Client.CloseIdleConnections reach the transport below.
func (t *boundedTransport) CloseIdleConnections() {
	if closer, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

type boundedBody struct {
	io.ReadCloser

	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// One byte more than allowed would be too large; the end here is fine.
		var one [1]byte
		n, err := b.ReadCloser.Read(one[:])
		if n > 0 {
			return 0, errAnswerTooLarge
		}
		return 0, err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// closeIdle ends the connections that are kept when the service ends.
func closeIdle(client *http.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		client.CloseIdleConnections()
		return nil
	}
}
