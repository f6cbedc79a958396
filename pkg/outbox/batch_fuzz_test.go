package outbox

import (
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/clock"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/testkit"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// FuzzBatch holds that whatever stands in a row of the table becomes events that
// can be published, or the row is set aside: it never stops the rows beside it.
func FuzzBatch(f *testing.F) {
	batch, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{
		event.New("animal.fed", "leo", 1, wrapperspb.String("full")), event.New("animal.fed", "zoe", 2, nil),
	}})
	require.NoError(f, err)
	subjectless, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{{Type: "a b.>", Key: "x"}}})
	require.NoError(f, err)
	for _, data := range [][]byte{batch, subjectless, {}, {0x0a, 0}, {0xff}, batch[:len(batch)-1]} {
		f.Add(data, []byte{1, 0})
		f.Add(data, []byte{})
		f.Add(data, []byte{0, 1, 1})
	}
	good := storedRow{ID: uuid.New(), CreatedAt: time.Unix(1, 0), Envelopes: batch}
	f.Fuzz(func(t *testing.T, data, versions []byte) {
		o := New(nil, nil, "zoo", clock.System(), slog.New(slog.DiscardHandler))
		row := storedRow{ID: uuid.New(), CreatedAt: time.Unix(1, 0), Envelopes: data}
		for _, v := range versions { // NULL stands for an event that did not happen
			version := int64(v)
			if row.KeyVersions = append(row.KeyVersions, &version); v == 0 {
				row.KeyVersions[len(row.KeyVersions)-1] = nil
			}
		}
		var rows []Row
		testkit.Bounded(t, 1<<20+128*uint64(len(data)), func() {
			rows = o.read(t.Context(), []storedRow{good, row, good})
		})
		require.Equal(t, good.ID, rows[0].ID)
		require.Equal(t, good.ID, rows[len(rows)-1].ID)
		if len(rows) == 2 {
			require.Contains(t, o.broken, row.ID)
			return
		}
		require.NotContains(t, o.broken, row.ID)
		for _, ev := range rows[1].events {
			require.NoError(t, event.Check(ev))
		}
		messages, err := event.Messages("zoo", rows[1].events)
		require.NoError(t, err)
		var sent []*eventv1.Event
		for _, msg := range messages {
			require.Less(t, len(msg.Data), 1<<20, "NATS takes it")
			events, err := event.Read(msg.Header, msg.Data)
			require.NoError(t, err)
			for _, ev := range events {
				require.Equal(t, event.Subject("zoo", ev.GetType()), msg.Subject)
			}
			sent = append(sent, events...)
		}
		require.Len(t, sent, len(rows[1].events))
		for i, ev := range rows[1].events {
			require.True(t, proto.Equal(ev, sent[i]), "all of them, in their order")
		}
	})
}
