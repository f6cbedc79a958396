package auth

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/testkit"
)

// FuzzRefreshToken holds that a token is read in the one form in which it was
// given out, and that no invention does anything to a session: it neither rotates
// nor ends it.
func FuzzRefreshToken(f *testing.F) {
	sealer := refreshSealer{key: []byte("the key of the server that issues")}
	newest := sealer.first(uuid.NewSHA1(uuid.Nil, []byte("session")))
	// The seeds are the same in each process of a fuzzer.
	newest.secret = [refreshSecretBytes]byte{1, 2, 3}
	spent := sealer.tagged(newest)
	newest = sealer.next(spent)
	forged := refreshSealer{key: []byte("another key")}.next(spent)
	for _, text := range []string{
		newest.String(), spent.String(), forged.String(), newest.String() + "\n", newest.String()[:40], "prt_", "",
		strings.TrimPrefix(newest.String(), refreshPrefix), newest.String()[:len(newest.String())-1] + "B", strings.ToUpper(newest.String()),
	} {
		f.Add(text)
	}
	hash := newest.hash()
	now := time.Unix(1_800_000_000, 0)
	state := sessionState{tokenHash: hash[:], rotatedAt: now.Add(-time.Hour), expiresAt: now.Add(time.Hour), idleExpiresAt: now.Add(time.Hour)}
	f.Fuzz(func(t *testing.T, text string) {
		var parsed refreshToken
		var ok bool
		testkit.Bounded(t, 1<<20+64*uint64(len(text)), func() { parsed, ok = parseRefreshToken(text) })
		if !ok {
			return
		}
		require.Equal(t, text, parsed.String())
		want := refreshInvalid
		switch text {
		case newest.String():
			want = refreshRotates
		case spent.String():
			want = refreshReused
		}
		require.Equal(t, want, sealer.present(parsed, state, now))
		state.revoked = true
		require.Equal(t, refreshInvalid, sealer.present(parsed, state, now))
		state.revoked = false
	})
}

// FuzzClientAddress holds that a client which does not come through a gateway
// speaks for itself, and that of a gateway's header only the end counts.
func FuzzClientAddress(f *testing.F) {
	for _, header := range []string{"", "203.0.113.9", "203.0.113.9, 198.51.100.1", "::1", "[2001:db8::1]:443", "fe80::1%eth0", "::ffff:10.0.0.1", ",", "x"} {
		f.Add("10.0.0.1:80", header)
		f.Add("192.0.2.7:80", header)
		f.Add("in-process", header)
	}
	gateways := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, peer, header string) {
		var got netip.Addr
		testkit.Bounded(t, 1<<20+64*uint64(len(header)), func() { got = clientAddress(peer, []string{header}, gateways) })
		direct, inProcess := peerAddress(peer)
		if !inProcess && !within(direct, gateways) {
			require.Equal(t, network(direct), got)
			return
		}
		last := header[strings.LastIndexByte(header, ',')+1:]
		require.Equal(t, got, clientAddress(peer, []string{"198.51.100.77, " + last}, gateways), "what stands before the last one is the client's own")
		if got.IsValid() {
			require.Equal(t, got, network(got), "a limit counts whole networks")
			require.Empty(t, got.Zone())
		}
	})
}
