package event

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	barrierv1 "github.com/parleychat/parley/proto/gen/parley/barrier/v1"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
)

// BarrierTimeout is how long an RPC waits at a barrier at most.
const BarrierTimeout = 2 * time.Second

// Barrier waits until named services have committed the effect of one event:
//
//	barrier := bus.NewBarrier("privacy", "messaging")
//	defer barrier.Close()
//	err := out.Tx(ctx, func(tx pgx.Tx, emit ...) error { ...; return emit(barrier.On(ev)) })
//	propagation := barrier.Wait(ctx, event.BarrierTimeout)
//
// The publisher does not know what the listeners do, and the event reaches them
// whatever the barrier says.
type Barrier struct {
	all   *barriers
	token string

	mu      sync.Mutex
	missing map[string]struct{}
	done    chan struct{}
}

// NewBarrier makes a barrier for the named services. A name is a service
// ("messaging": any of its listeners of the event), or one listener of it
// ("messaging/user.blocked") where a service has several.
func (b *Bus) NewBarrier(services ...string) *Barrier {
	br := &Barrier{all: b.barriers, token: nats.NewInbox()[len(nats.InboxPrefix):], missing: map[string]struct{}{}, done: make(chan struct{})}
	for _, s := range services {
		br.missing[s] = struct{}{}
	}
	if len(br.missing) == 0 {
		close(br.done)
		return br
	}
	b.barriers.add(br)
	return br
}

// ReplySubject is where listeners answer.
func (br *Barrier) ReplySubject() string { return br.all.prefix + br.token }

// On sets the barrier's reply subject on an event, and returns it.
func (br *Barrier) On(ev *eventv1.Event) *eventv1.Event {
	ev.ReplySubject = br.ReplySubject()
	return ev
}

// Wait returns COMPLETE as soon as every named service has answered, PENDING
// when the time or ctx is over first. It closes the barrier.
func (br *Barrier) Wait(ctx context.Context, timeout time.Duration) barrierv1.Propagation {
	defer br.Close()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-br.done:
		return barrierv1.Propagation_PROPAGATION_COMPLETE
	case <-timer.C:
	case <-ctx.Done():
	}
	// Of two that are ready, select takes either; complete is complete.
	select {
	case <-br.done:
		return barrierv1.Propagation_PROPAGATION_COMPLETE
	default:
		return barrierv1.Propagation_PROPAGATION_PENDING
	}
}

// Close forgets the barrier. It may be called more than once.
func (br *Barrier) Close() { br.all.remove(br) }

// answer notes one answer: "service/listener".
func (br *Barrier) answer(who string) {
	service, _, _ := strings.Cut(who, "/")
	br.mu.Lock()
	defer br.mu.Unlock()
	before := len(br.missing)
	delete(br.missing, who)
	delete(br.missing, service)
	if before > 0 && len(br.missing) == 0 {
		close(br.done)
	}
}

// barriers hands the answers to the waiting ones. One subscription serves all,
// made when the connection is: so an answer cannot overtake the interest in it.
type barriers struct {
	prefix string
	sub    *nats.Subscription

	mu      sync.Mutex
	waiting map[string]*Barrier
}

func listenForAnswers(conn *nats.Conn) (*barriers, error) {
	all := &barriers{prefix: conn.NewInbox() + ".", waiting: map[string]*Barrier{}}
	var err error
	all.sub, err = conn.Subscribe(all.prefix+"*", func(msg *nats.Msg) {
		all.mu.Lock()
		br := all.waiting[strings.TrimPrefix(msg.Subject, all.prefix)]
		all.mu.Unlock()
		if br != nil {
			br.answer(string(msg.Data))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to barrier answers: %w", err)
	}
	return all, nil
}

func (all *barriers) add(br *Barrier) {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.waiting[br.token] = br
}

func (all *barriers) remove(br *Barrier) {
	all.mu.Lock()
	defer all.mu.Unlock()
	delete(all.waiting, br.token)
}

func (all *barriers) stop() {
	// The connection closes next, which ends the subscription anyway.
	_ = all.sub.Unsubscribe()
}
