package auth

import (
	"net/netip"
	"strings"
)

// clientAddress says from which address a person calls, for the limits per address. The rule is one trusted
// hop:
//
//   - In front of auth stands the gateway and nothing else. It decides who its client is (it alone
//     knows which load balancers stand before it) and appends that address to X-Forwarded-For.
//   - So exactly the last entry of that header is believed, and only when the immediate peer is inside one of
//     the networks that the operator names (PARLEY_AUTH_GATEWAY_NETWORKS; loopback and private ones by default)
//     or inside this very process (then it has no network address). Entries further left were
//     written by the client and are never read: that is how such limits are usually got around.
//   - Anybody else is taken by the address of the connection.
//
// An IPv6 client counts as its /64, the least that one customer holds. The zero Addr means unknown: no
// limit per address applies, the one per account does.
func clientAddress(peer string, forwardedFor []string, gateways []netip.Prefix) netip.Addr {
	direct, inProcess := peerAddress(peer)
	if !inProcess && !within(direct, gateways) {
		return network(direct)
	}
	if len(forwardedFor) > 0 {
		entries := strings.Split(forwardedFor[len(forwardedFor)-1], ",")
		last := strings.TrimSpace(entries[len(entries)-1])
		if addr, err := netip.ParseAddr(last); err == nil {
			return network(addr)
		}
		if withPort, err := netip.ParseAddrPort(last); err == nil {
			return network(withPort.Addr())
		}
	}
	// A gateway that names nobody: its own address would put all people in one pot.
	return netip.Addr{}
}

// peerAddress reads "host:port". What is no address, such as the name of an in-memory connection, is this
// process itself: over a network the peer always has one.
func peerAddress(peer string) (addr netip.Addr, inProcess bool) {
	if withPort, err := netip.ParseAddrPort(peer); err == nil {
		return withPort.Addr().Unmap(), false
	}
	if addr, err := netip.ParseAddr(peer); err == nil {
		return addr.Unmap(), false
	}
	return netip.Addr{}, true
}

func within(addr netip.Addr, networks []netip.Prefix) bool {
	for _, n := range networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// network is the unit that a limit counts: an IPv4 address, or the /64 of an IPv6 address.
func network(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}
