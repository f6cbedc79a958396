package e2e_test

import (
	"testing"

	"github.com/parleychat/parley/test/e2e/system"
)

// throughPgBouncer tells the calm stories that write most, with the services behind
// a PgBouncer in transaction mode: two transactions of one connection run on
// different ones of the server, which must not matter to anything.
func throughPgBouncer(t *testing.T, sys *system.System) {
	for _, s := range []struct {
		name string
		tell func(*testing.T, *system.System)
	}{
		{"TwoPeopleTalk", twoPeopleTalk},
		{"EverybodyTalksAtOnce", everybodyTalksAtOnce},
		{"BothStartAtOnce", bothStartAtOnce},
		{"RetryIsRecognised", retryIsRecognised},
		{"RefreshReuseEndsSession", refreshReuseEndsSession},
		{"PlainHTTP", plainHTTP},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.tell(t, sys)
		})
	}
}
