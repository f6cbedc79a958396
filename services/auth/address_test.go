package auth

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClientAddress(t *testing.T) {
	t.Parallel()
	gateways := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}
	for name, c := range map[string]struct {
		peer string
		via  []string
		want string
	}{
		"GatewayNamesItsClient":              {"10.1.2.3:5000", []string{"203.0.113.7"}, "203.0.113.7"},
		"OnlyTheLastEntryIsBelieved":         {"10.1.2.3:5000", []string{"198.51.100.1, 203.0.113.7"}, "203.0.113.7"},
		"TheLastOfSeveralHeadersIsBelieved":  {"10.1.2.3:5000", []string{"198.51.100.1", "203.0.113.7"}, "203.0.113.7"},
		"LastEntryInsidePrivateNetworkStays": {"10.1.2.3:5000", []string{"198.51.100.1, 10.9.9.9"}, "10.9.9.9"},
		"StrangersAreTakenByTheirConnection": {"203.0.113.9:5000", []string{"198.51.100.1"}, "203.0.113.9"},
		"InProcessGatewayIsTrusted":          {"", []string{"203.0.113.7"}, "203.0.113.7"},
		"NamedInMemoryPeerIsTrusted":         {"in-process", []string{"203.0.113.7"}, "203.0.113.7"},
		"EntryMayHaveAPort":                  {"127.0.0.1:1", []string{"203.0.113.7:4711"}, "203.0.113.7"},
		"IPv6CountsAsItsNetwork":             {"127.0.0.1:1", []string{"2001:db8:1:2:3:4:5:6"}, "2001:db8:1:2::"},
		"MappedIPv4IsIPv4":                   {"[::ffff:10.1.2.3]:5000", []string{"::ffff:203.0.113.7"}, "203.0.113.7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, netip.MustParseAddr(c.want), clientAddress(c.peer, c.via, gateways))
		})
	}
	t.Run("UnknownWhenTheGatewayNamesNobody", func(t *testing.T) {
		t.Parallel()
		require.Zero(t, clientAddress("10.1.2.3:5000", nil, gateways))
		require.Zero(t, clientAddress("10.1.2.3:5000", []string{"unknown"}, gateways))
		require.Zero(t, clientAddress("", nil, gateways))
	})
}
