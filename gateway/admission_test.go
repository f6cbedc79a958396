package gateway

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who calls from ever new networks fills no memory, and takes nothing from those
// who have sockets.
func TestSourcesAreBounded(t *testing.T) {
	t.Parallel()
	cfg, err := Defaults()
	require.NoError(t, err)
	a, err := newAdmission(&cfg)
	require.NoError(t, err)
	a.most = 100
	network := func(n uint32) netip.Addr {
		address := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		binary.BigEndian.PutUint32(address[4:], n) // of the first 64 bits
		return netip.AddrFrom16(address)
	}
	own := a.source(network(0))
	wait, _ := own.admitSocket()
	require.Zero(t, wait)
	for n := range uint32(10_000) {
		require.Zero(t, a.source(network(n+1)).admitCall(), "nobody who is new has to wait")
	}
	require.LessOrEqual(t, len(a.sources), 101)
	require.Same(t, own, a.source(network(0)), "its sockets are counted on")
}
