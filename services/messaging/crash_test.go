package messaging_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/services/messaging"
)

// PostgreSQL dies in the middle of a load. Everybody retries with the same ids
// until it is back: every message is in the log once, in its sender's order.
func TestSendMessageWhilePostgresDies(t *testing.T) {
	t.Parallel()
	def := messaging.Definition()
	server := testkit.PrivatePostgres(t)
	w := start(t, servicetest.Options{
		Clock:    clock.System(),
		Database: server.NewDatabase(t, testkit.Schema{Service: def.Name, Migrations: def.Migrations}),
	}, nil)
	ctx := t.Context()
	a, b, id := w.friends()
	const senders, each = 16, 60
	var answered, retried atomic.Int64
	warm := make(chan struct{})
	var once sync.Once
	together(senders+1, func(i int) {
		if i == senders {
			<-warm
			server.Kill9()
			server.Restart()
			return
		}
		for n := range each {
			req := message(id, text(i, n))
			for {
				_, err := a.SendMessage(ctx, req)
				if err == nil {
					break
				}
				requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
				retried.Add(1)
			}
			if answered.Add(1) > senders*each/4 {
				once.Do(func() { close(warm) })
			}
		}
	})
	require.Positive(t, retried.Load(), "nobody noticed")

	require.Eventually(t, func() bool {
		res, err := b.ListEvents(ctx, &messagingv1.ListEventsRequest{ConversationId: id, Limit: 1})
		return err == nil && res.GetHeadSeq() == senders*each+1
	}, 20*time.Second, 50*time.Millisecond)
	next := make([]int, senders)
	for _, said := range texts(b.log(id)) {
		who := 0
		for who < senders && said != text(who, next[who]) {
			who++
		}
		require.Less(t, who, senders, "%q is out of order or there twice", said)
		next[who]++
	}
}
