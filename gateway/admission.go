package gateway

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// admission decides who may come in, before anything is decoded, verified or
// allocated for them.
type admission struct {
	cfg     LimitsConfig
	trusted []netip.Prefix
	exempt  []netip.Prefix
	node    *rate.Limiter
	free    *source // of exempt addresses, without limits
	most    int     // addresses to remember

	mu      sync.Mutex
	sources map[netip.Addr]*source
}

// source is one client address, for IPv6 a /64.
type source struct {
	in      *admission
	limited bool
	calls   *rate.Limiter
	opens   *rate.Limiter

	// Under admission.mu.
	strangers, known int
	used             time.Time
}

const (
	// forgetAfter is how long an address without sockets is remembered.
	forgetAfter = 10 * time.Minute
	// sweepStep is how many addresses each new one looks at, sweepMost how many while
	// there are too many.
	sweepStep, sweepMost = 4, 64
	// maxSources bounds the addresses that are remembered, at some 400 bytes each: who
	// has a network of IPv6 has millions of them.
	maxSources = 200_000
	// retryLater is what a client over a limit without a rate is told.
	retryLater = 5 * time.Second
)

func newAdmission(cfg *Config) (*admission, error) {
	trusted, err := parsePrefixes(cfg.TrustedProxies)
	if err != nil {
		return nil, err
	}
	exempt, err := parsePrefixes(cfg.Exempt)
	if err != nil {
		return nil, err
	}
	a := &admission{
		cfg: cfg.Limits, trusted: trusted, exempt: exempt,
		node:    rate.NewLimiter(rate.Limit(cfg.Limits.NodeSocketRate), cfg.Limits.NodeSocketBurst),
		most:    maxSources,
		sources: make(map[netip.Addr]*source),
	}
	a.free = &source{in: a}
	return a, nil
}

// addressOf is the address of the client: the peer, or what trusted proxies say
// about it. Only the part of X-Forwarded-For that a trusted proxy wrote counts.
func (a *admission) addressOf(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // in process: one source for all
	}
	address := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && within(address, a.trusted); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		address = hop.Unmap()
	}
	return address
}

func within(address netip.Addr, prefixes []netip.Prefix) bool {
	for _, prefix := range prefixes {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// source finds or makes the record of an address.
func (a *admission) source(address netip.Addr) *source {
	if within(address, a.exempt) {
		return a.free
	}
	if address.Is6() {
		if prefix, err := address.Prefix(64); err == nil {
			address = prefix.Addr()
		}
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.sources[address]
	if !ok {
		a.sweep(now)
		s = &source{
			in: a, limited: true,
			calls: rate.NewLimiter(rate.Limit(a.cfg.AddressCallRate), a.cfg.AddressCallBurst),
			opens: rate.NewLimiter(rate.Limit(a.cfg.AddressSocketRate), a.cfg.AddressSocketBurst),
		}
		a.sources[address] = s
	}
	s.used = now
	return s
}

// sweep forgets a few idle addresses: those who make the map grow pay for it. When
// there are too many it takes whichever it meets without a socket: that address has
// its burst anew, which whoever fills the map with fresh ones has anyway, and
// nobody who is new has to share. Addresses with sockets stay; the limits of sockets
// bound them.
func (a *admission) sweep(now time.Time) {
	looked := 0
	for address, s := range a.sources { // starts anywhere
		full := len(a.sources) >= a.most
		if s.strangers+s.known == 0 && (full || now.Sub(s.used) > forgetAfter) {
			delete(a.sources, address)
		}
		if looked++; looked >= sweepMost || (!full && looked >= sweepStep) {
			return
		}
	}
}

// admitCall says how long a call has to wait; zero lets it through.
func (s *source) admitCall() time.Duration {
	if !s.limited {
		return 0
	}
	return waitFor(s.calls)
}

// admitSocket takes a place for a stranger. On a wait above zero none is taken
// and limit says which limit it was.
func (s *source) admitSocket() (wait time.Duration, limit string) {
	if wait := waitFor(s.in.node); wait > 0 {
		return wait, "node_rate"
	}
	if s.limited {
		if wait := waitFor(s.opens); wait > 0 {
			return wait, "address_rate"
		}
	}
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.limited && s.strangers >= s.in.cfg.AddressStrangers {
		return retryLater, "address_strangers"
	}
	if s.limited && s.strangers+s.known >= s.in.cfg.AddressSockets {
		return retryLater, "address_sockets"
	}
	s.strangers++
	return 0, ""
}

// join makes a stranger known.
func (s *source) join() { s.change(-1, +1) }

// leave gives back the place of a known socket, leaveUnknown that of a stranger.
func (s *source) leave()        { s.change(0, -1) }
func (s *source) leaveUnknown() { s.change(-1, 0) }

func (s *source) change(strangers, known int) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.strangers += strangers
	s.known += known
	s.used = time.Now()
}

// waitFor takes a token, or says when there will be one.
func waitFor(limiter *rate.Limiter) time.Duration {
	now := time.Now()
	reservation := limiter.ReserveN(now, 1)
	delay := reservation.DelayFrom(now)
	if delay > 0 {
		reservation.CancelAt(now)
	}
	return delay
}
