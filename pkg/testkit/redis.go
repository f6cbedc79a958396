package testkit

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"testing"
)

// Redis gives the test a key space of its own on the shared Redis protocol server and returns its URL,
// redis://host:port/number. Keys are isolated; pub/sub channels are not, as in Redis itself.
//
// Clients must speak RESP2 and not use client-side caching (rueidis: AlwaysRESP2 and DisableCache).
func Redis(t testing.TB) string {
	t.Helper()
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	// The server takes any number that is not negative, so a random one in 2^31 is a key space of its own.
	return fmt.Sprintf("redis://%s/%d", servers(t).Redis, binary.BigEndian.Uint32(b[:])>>1)
}
