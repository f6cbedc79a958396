package e2e_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/history"
	"github.com/parleychat/parley/test/e2e/system"
)

// checkerSeesLies: the checker that says that nothing was lost in all of these
// stories finds each planted lie in a real run: of one device about what it
// showed, and of the server, to all, about what it stored.
func checkerSeesLies(t *testing.T, sys *system.System) {
	c := gather(t, sys, 2, deviceOptions{})
	l := c.talk(t)
	l.await(t, 60)
	l.end(t)
	c.settle(t, soon)
	require.Empty(t, history.Check(c.rec.History()), "the truth")

	lies := []struct {
		name  string
		lie   func([]history.Entry) []history.Entry
		shown history.Rule // found when one device lies
		log   history.Rule // found when every log and every device does
	}{
		{"LostTail", func(es []history.Entry) []history.Entry { return es[:len(es)-1] }, history.Behind, history.Lost},
		{"Hole", func(es []history.Entry) []history.Entry { return slices.Delete(es, 10, 11) }, history.Hole, history.Lost},
		{"Swap", func(es []history.Entry) []history.Entry {
			es[10], es[11] = es[11], es[10]
			return es
		}, history.Doubled, history.Hole},
		{"Double", func(es []history.Entry) []history.Entry { return slices.Insert(es, 10, es[10]) }, history.Doubled, history.Doubled},
		{"Invention", func(es []history.Entry) []history.Entry {
			es[10].ClientID = "nobody's"
			return es
		}, history.Diverged, history.Invented},
	}
	for _, lie := range lies {
		t.Run(lie.name, func(t *testing.T) {
			t.Parallel()
			device := c.rec.History()
			device.Views[0].Entries = lie.lie(device.Views[0].Entries)
			require.Contains(t, rules(device), lie.shown)

			server := c.rec.History()
			for i := range server.Logs {
				server.Logs[i].Entries = lie.lie(slices.Clone(server.Logs[i].Entries))
			}
			for i := range server.Views {
				server.Views[i].Entries = lie.lie(server.Views[i].Entries)
			}
			require.Contains(t, rules(server), lie.log)
		})
	}
}

func rules(h history.History) []history.Rule {
	var broken []history.Rule
	for _, v := range history.Check(h) {
		broken = append(broken, v.Rule)
	}
	return broken
}
