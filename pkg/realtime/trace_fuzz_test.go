package realtime

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// FuzzOrigin holds that the headers of a push name a sampled step and a time, or
// nothing at all.
func FuzzOrigin(f *testing.F) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, seed := range [][2]string{
		{parent, "1800000000000000000"}, {parent, "-1"}, {parent, "x"}, {parent, ""}, {parent[:54] + "0", "1"}, {"", "1"}, {"00-0-0-01", "9223372036854775808"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, parent, sent string) {
		origin, ok := originOf(t.Context(), nats.Header{headerTrace: {parent}, headerSent: {sent}})
		if ok {
			require.True(t, origin.Span.IsValid())
			require.True(t, origin.Span.IsSampled())
			require.True(t, origin.Span.IsRemote())
		}
		_, twice := originOf(t.Context(), nats.Header{headerTrace: {parent, parent}, headerSent: {sent}})
		require.False(t, twice)
	})
}
