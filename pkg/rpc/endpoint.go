package rpc

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	firstBackoff = 100 * time.Millisecond
	mostBackoff  = 5 * time.Second
	// silence is how long a call has to have waited in vain before it says something
	// about the endpoint and not about the caller's impatience.
	silence = time.Second
	// idleConn is when an unused connection is closed, also one that was replaced
	// because of its age while calls were running on it.
	idleConn = time.Minute
)

// endpoint is one address of a service with its connection.
type endpoint struct {
	scheme string
	host   string // as named, for TLS
	addr   string // ip:port
	cfg    RemoteConfig

	waiting atomic.Int64 // calls whose answer has not begun

	mu        sync.Mutex
	transport *http.Transport
	replaceAt time.Time
	downUntil time.Time
	backoff   time.Duration // above 0 after a failure, until an answer
	probing   bool          // a call is finding out whether it is back
}

func newEndpoint(t target, addr string, cfg RemoteConfig) *endpoint {
	return &endpoint{scheme: t.scheme, host: t.host, addr: addr, cfg: cfg}
}

// good says that the endpoint has not failed since its last answer.
func (e *endpoint) good() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.backoff == 0
}

// take says whether a call may go to the endpoint. One that was put aside gets a
// single call when its time is over: a process that hangs still accepts
// connections, and must not get every second call again.
func (e *endpoint) take(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.backoff == 0 {
		return true
	}
	if e.probing || now.Before(e.downUntil) {
		return false
	}
	e.probing = true
	return true
}

// failed puts the endpoint aside, longer each time, with jitter so that callers
// do not come back all at once.
func (e *endpoint) failed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.backoff = min(max(2*e.backoff, firstBackoff), mostBackoff)
	e.downUntil = time.Now().Add(e.backoff/2 + rand.N(e.backoff))
	e.probing = false
}

// released ends a call that says nothing about the endpoint.
func (e *endpoint) released() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.probing = false
}

func (e *endpoint) answered() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.backoff, e.downUntil, e.probing = 0, time.Time{}, false
}

// roundTrip sends one request to this address.
func (e *endpoint) roundTrip(r *http.Request, body *heldBody) (*http.Response, error) {
	out := r.WithContext(r.Context())
	u := *r.URL
	u.Scheme, u.Host = e.scheme, e.addr
	out.URL = &u
	if out.Host == "" {
		out.Host = r.URL.Host
	}
	if body != nil {
		out.Body = body.attempt()
	}
	began := time.Now()
	e.waiting.Add(1)
	res, err := e.current().RoundTrip(out)
	e.waiting.Add(-1)
	switch {
	case err == nil:
		e.answered()
	case inVain(r.Context(), time.Since(began), body):
		e.failed()
	default:
		e.released()
	}
	return res, err //nolint:wrapcheck // the balancer looks for a dialError in it
}

// inVain says that a call that failed says something about the endpoint: the
// connection broke, or nothing came in all the time that it had. A body that
// could not be read, or did not come to its end, is the caller's fault.
func inVain(ctx context.Context, waited time.Duration, body *heldBody) bool {
	switch ctx.Err() {
	case nil:
		return !body.unreadable()
	case context.DeadlineExceeded:
		return waited >= silence && !body.unreadable() && !body.late()
	default:
		return false
	}
}

// current is the transport, replaced when it is old. The old one serves the
// calls that run on it and closes its connection when they have ended.
func (e *endpoint) current() *http.Transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if e.transport == nil || now.After(e.replaceAt) {
		if e.transport != nil {
			e.transport.CloseIdleConnections()
		}
		e.transport = e.newTransport()
		spread := e.cfg.MaxConnAge / 10
		e.replaceAt = now.Add(e.cfg.MaxConnAge - spread + rand.N(2*spread+1))
	}
	return e.transport
}

func (e *endpoint) newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: e.cfg.DialTimeout, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Protocols:          new(http.Protocols),
		DisableCompression: true, // Connect negotiates its own
		IdleConnTimeout:    idleConn,
		TLSClientConfig:    &tls.Config{ServerName: e.host, MinVersion: tls.VersionTLS12},
		// A peer that vanished without a word is noticed within 15 s.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &dialError{cause: err}
			}
			return conn, nil
		},
	}
	t.Protocols.SetHTTP2(true)
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// retire is for an address that is no longer the service's.
func (e *endpoint) retire() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.transport != nil {
		e.transport.CloseIdleConnections()
	}
}

// target is one URL of a configured address.
type target struct {
	scheme string
	host   string
	port   string
}

func (t target) key(addr string) string { return t.scheme + "://" + t.host + "|" + addr }

func parseTarget(raw string) (target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, errBadTarget
	}
	t := target{scheme: u.Scheme, host: u.Hostname(), port: u.Port()}
	if t.port == "" {
		t.port = map[string]string{"http": "80", "https": "443"}[t.scheme]
	}
	if (t.scheme != "http" && t.scheme != "https") || t.host == "" || t.port == "" || (u.Path != "" && u.Path != "/") || u.User != nil {
		return target{}, errBadTarget
	}
	return t, nil
}
