package event_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parleychat/parley/pkg/event"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// herd are events of one transaction.
func herd(n int) []*eventv1.Event {
	events := make([]*eventv1.Event, n)
	for i := range events {
		events[i] = fed(fmt.Sprintf("cow-%d", i), 1, "full")
	}
	return events
}

func TestMessages(t *testing.T) {
	t.Parallel()
	sizes := func(t *testing.T, events ...*eventv1.Event) []int {
		t.Helper()
		for i, ev := range events {
			if ev.GetId() == "" {
				ev.Id = fmt.Sprintf("id-%d", i)
			}
		}
		messages, err := event.Messages("zoo", events)
		require.NoError(t, err)
		var sizes []int
		var all []*eventv1.Event
		ids := map[string]bool{}
		for _, msg := range messages {
			some, err := event.Read(msg.Header, msg.Data)
			require.NoError(t, err)
			sizes, all = append(sizes, len(some)), append(all, some...)
			require.Equal(t, "event.zoo."+some[0].GetType(), msg.Subject)
			ids[msg.Header.Get("Nats-Msg-Id")] = true
		}
		require.Len(t, ids, len(messages), "each is itself to JetStream")
		for i, ev := range events {
			require.Equal(t, ev.GetId(), all[i].GetId())
		}
		return sizes
	}
	t.Run("AnEventAloneIsAnEventOnTheWire", func(t *testing.T) {
		t.Parallel()
		require.Equal(t, []int{1}, sizes(t, herd(1)...))
		messages, err := event.Messages("zoo", []*eventv1.Event{{Id: "one", Type: "animal.fed", Key: "lion"}})
		require.NoError(t, err)
		require.Equal(t, nats.Header{"Nats-Msg-Id": {"one"}}, messages[0].Header)
	})
	t.Run("EventsOfOneTypeShareAMessageUpToABound", func(t *testing.T) {
		t.Parallel()
		require.Equal(t, []int{32, 32, 6}, sizes(t, herd(70)...))
		require.Equal(t, []int{2, 1, 1}, sizes(t, append(herd(2), event.New("animal.born", "cub", 1, nil), fed("cub", 1, "full"))...))
	})
	t.Run("LargeOnesStandAlone", func(t *testing.T) {
		t.Parallel()
		large := func() *eventv1.Event { return fed("elephant", 1, strings.Repeat("x", 100<<10)) }
		require.Equal(t, []int{1, 3, 1}, sizes(t, large(), large(), fed("a", 1, ""), fed("b", 1, ""), large()))
	})
	t.Run("TheSameRowMakesTheSameMessages", func(t *testing.T) {
		t.Parallel()
		events := herd(40)
		for i, ev := range events {
			ev.Id = fmt.Sprintf("id-%d", i)
		}
		first, err := event.Messages("zoo", events)
		require.NoError(t, err)
		second, err := event.Messages("zoo", events)
		require.NoError(t, err)
		for i := range first {
			require.Equal(t, first[i].Header, second[i].Header, "JetStream knows what it has")
		}
	})
	t.Run("NothingIsNoMessage", func(t *testing.T) {
		t.Parallel()
		require.Empty(t, sizes(t))
		_, err := event.Read(nats.Header{"Parley-Events": {"1"}}, nil)
		require.Error(t, err)
	})
}

// TestPoisonedAmongOthers has one event of a message fail for good: it is parked,
// alone, and the others have their effect once.
func TestPoisonedAmongOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var calls atomic.Int32
	l := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, p *wrapperspb.StringValue) error {
		if ev.GetKey() == "cow-7" {
			return errors.New("no hay")
		}
		return count(ctx, tx, ev, p)
	})
	w.listen([]event.Listener{counting(&calls, l)}, event.MaxAttempts(3))
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	events := herd(20)
	require.NoError(t, w.send(events...))
	letters := w.dead(1)
	require.Equal(t, "cow-7", letters[0].Letter.GetEvent().GetKey())
	require.EqualValues(t, 3, letters[0].Letter.GetAttempts())
	w.settled(zooFed)
	for _, ev := range events {
		n, _, _ := w.effect(ev.GetKey())
		want := 1
		if ev.GetKey() == "cow-7" {
			want = 0
		}
		require.Equal(t, want, n, ev.GetKey())
	}
	require.EqualValues(t, 19+3, calls.Load(), "the inbox knows the others when the message comes again")
}

// TestStopAmongOthers ends a listener while it works on a message: what it had no
// time for is another replica's at once.
func TestStopAmongOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var calls atomic.Int32
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := event.On("zoo", "animal.fed", event.Once, func(ctx context.Context, tx pgx.Tx, ev *eventv1.Event, p *wrapperspb.StringValue) error {
		once.Do(func() { close(reached) })
		<-goOn
		return count(ctx, tx, ev, p)
	})
	stop, stopped := w.listenUntil([]event.Listener{counting(&calls, slow)}, event.Concurrency(2))
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	events := herd(20)
	require.NoError(t, w.send(events...))
	<-reached
	stop() // the two at work may finish; whoever waits for their places is told before they are free
	close(goOn)
	stopped()
	require.Less(t, int(calls.Load()), len(events))

	w.listen([]event.Listener{counting(&calls, event.On("zoo", "animal.fed", event.Once, count))})
	w.settled(zooFed)
	for _, ev := range events {
		n, _, _ := w.effect(ev.GetKey())
		require.Equal(t, 1, n, ev.GetKey())
	}
	require.EqualValues(t, len(events), calls.Load())
}

func TestFollowersGetAllOfAMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.bus.EnsureStream(t.Context(), "zoo")
	require.NoError(t, err)
	require.NoError(t, w.send(herd(40)...))
	ctx, stop := context.WithCancel(t.Context())
	var followed []string
	caughtUp := make(chan int, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- w.bus.Follow(ctx, "zoo", "animal.fed", time.Hour,
			func(ev *eventv1.Event) { followed = append(followed, ev.GetKey()) }, func() { caughtUp <- len(followed) })
	}()
	require.Equal(t, 40, <-caughtUp)
	stop()
	require.NoError(t, <-ended)
	for i, key := range followed {
		require.Equal(t, fmt.Sprintf("cow-%d", i), key, "in their order")
	}
}
