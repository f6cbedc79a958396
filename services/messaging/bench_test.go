package messaging_test

import (
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	"github.com/parleychat/parley/services/messaging"
)

// BenchmarkSend sends through the whole service, in process, into a PostgreSQL of
// its own with fsync on: 200 conversations, 256 senders that each wait for their
// answer. msgs/s is what is acknowledged as durable.
func BenchmarkSend(b *testing.B) {
	def := messaging.Definition()
	server := testkit.PrivatePostgres(b)
	w := start(b, servicetest.Options{
		Clock: clock.System(), Log: slog.New(slog.DiscardHandler),
		Database: server.NewDatabase(b, testkit.Schema{Service: def.Name, Migrations: def.Migrations}),
	}, nil)
	const conversations = 200
	people, logs := make([]*person, conversations), make([]string, conversations)
	for i := range conversations {
		people[i], _, logs[i] = w.friends()
		// One token for all of a person's calls, as on a socket: it is verified once.
		people[i].caller = w.Token(w.AccessToken(people[i].caller))
		people[i] = people[i].at(w.Instances("messaging")[0])
		people[i].say(logs[i], "warm")
	}
	var next atomic.Int64
	b.SetParallelism(128) // per processor
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := next.Add(1) % conversations
			if _, err := people[i].SendMessage(b.Context(), message(logs[i], "forty-two bytes of text, as people write.")); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
}
