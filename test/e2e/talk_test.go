package e2e_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/history"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// twoPeopleTalk: a message reaches all devices of both, unread counts rise and
// fall, and the other side sees that it was read.
func twoPeopleTalk(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	receipts := make(chan *messagingv1.Receipt, 16)
	phone := ada.connect(t, "phone", deviceOptions{gateway: 0, drop: func(p *realtimev1.Push) bool {
		if r := p.GetReceipt(); r.GetUserId() == ben.id && r.GetReadSeq() > 0 {
			receipts <- r
		}
		return false
	}})
	laptop := ada.connect(t, "laptop", deviceOptions{gateway: 1})
	other := ben.connect(t, "phone", deviceOptions{gateway: 1})
	talk := ada.talkTo(t, ben)

	sent := phone.say(t, talk, "hello Ben")
	require.EqualValues(t, 2, sent.GetSeq(), "the log begins with its start")
	require.EqualValues(t, 1, sent.GetOrdinal())
	for _, d := range []*device{phone, laptop, other} {
		d.awaitHead(t, talk, 2, soon)
		require.Equal(t, ben.readLog(t, 0, talk), d.entries(talk))
	}
	answer := other.say(t, talk, "hello Ada")
	laptop.awaitHead(t, talk, answer.GetSeq(), soon)

	requireUnread(t, ada, talk, 1)
	requireUnread(t, ben, talk, 0)
	_, err := ada.messaging(0).MarkRead(t.Context(), &messagingv1.MarkReadRequest{ConversationId: talk, Seq: answer.GetSeq()})
	require.NoError(t, err)
	requireUnread(t, ada, talk, 0)
	another := phone.say(t, talk, "how are you?")
	_, err = ben.messaging(1).MarkRead(t.Context(), &messagingv1.MarkReadRequest{ConversationId: talk, Seq: another.GetSeq()})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		select {
		case r := <-receipts:
			return r.GetReadSeq() == another.GetSeq()
		default:
			return false
		}
	}, soon, poll, "Ada is told that Ben has read")
}

// requireUnread waits until the person's unread count is n: watermarks, also
// those of one's own messages, are stored within a second.
func requireUnread(t *testing.T, p *person, conversation string, n int64) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		res, err := p.messaging(0).GetConversation(t.Context(), &messagingv1.GetConversationRequest{ConversationId: conversation})
		assert.NoError(c, err)
		assert.Equal(c, n, res.GetConversation().GetUnread())
	}, soon, poll, "unread messages")
}

// everybodyTalksAtOnce: three people with two devices each write in all their
// conversations at the same time.
func everybodyTalksAtOnce(t *testing.T, sys *system.System) {
	c := gather(t, sys, 3, deviceOptions{})
	l := c.talk(t)
	l.await(t, 600)
	l.end(t)
	c.judge(t, soon)
}

// laneKeepsOrder: calls of one lane that are all under way at once are done in
// the order in which they were sent.
func laneKeepsOrder(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	phone := ada.connect(t, "phone", deviceOptions{})
	reader := ben.connect(t, "phone", deviceOptions{gateway: 1})
	talk := ada.talkTo(t, ben)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := phone.Connected(ctx)
	require.NoError(t, err)

	const rounds = 8
	atOnce := int(conn.Welcome().GetMaxOpenCalls()) / 2 // the device itself calls, too
	require.Positive(t, atOnce)
	var last int64
	for round := range rounds {
		waits := make([]func(*messagingv1.SendMessageResponse) error, 0, atOnce)
		for i := range atOnce {
			pending, err := conn.Begin(ctx, messagingv1connect.MessagingServiceSendMessageProcedure, talk, &messagingv1.SendMessageRequest{
				ConversationId: talk, ClientMessageId: newID(t), Text: text(phone.name, round*atOnce+i),
			})
			require.NoError(t, err)
			waits = append(waits, func(res *messagingv1.SendMessageResponse) error { return pending.Wait(ctx, res) })
		}
		for _, wait := range waits {
			var res messagingv1.SendMessageResponse
			require.NoError(t, wait(&res))
			require.Greater(t, res.GetSeq(), last, "in the order of sending")
			last = res.GetSeq()
		}
	}
	reader.awaitHead(t, talk, last, soon)
	shown := reader.entries(talk)
	require.Len(t, shown, 1+rounds*atOnce)
	for i, e := range shown[1:] {
		require.Equal(t, history.Hash(text(phone.name, i)), e.Content, "message %d", i)
	}
}

// bothStartAtOnce: two people who start their conversation in the same moment get
// one, with one beginning.
func bothStartAtOnce(t *testing.T, sys *system.System) {
	for range 5 {
		pair := []*person{register(t, sys, 0), register(t, sys, 1)}
		devices := []*device{pair[0].connect(t, "phone", deviceOptions{}), pair[1].connect(t, "phone", deviceOptions{gateway: 1})}
		const tries = 4
		ids, errs := make([]string, 2*tries), make([]error, 2*tries)
		var at sync.WaitGroup
		for i := range 2 * tries {
			at.Go(func() {
				me, you := pair[i%2], pair[(i+1)%2]
				res, err := me.messaging(i).CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: you.id})
				ids[i], errs[i] = res.GetConversation().GetId(), err
			})
		}
		at.Wait()
		for i := range ids {
			require.NoError(t, errs[i])
			require.Equal(t, ids[0], ids[i], "one conversation per pair")
		}
		for i, d := range devices {
			d.awaitHead(t, ids[0], 1, soon)
			require.Len(t, pair[i].readLog(t, i, ids[0]), 1, "one beginning")
		}
	}
}

// socketsDrop: connections break all the time while people talk.
func socketsDrop(t *testing.T, sys *system.System) {
	way := system.NewProxy(t, hostOf(sys, 0))
	c := gather(t, sys, 2, deviceOptions{way: way.Addr})
	l := c.talk(t)
	for i := range 12 {
		l.await(t, 20)
		if i%3 == 2 {
			way.Drop() // all at once
		} else {
			c.devices[i%len(c.devices)].Cut()
		}
	}
	way.Cut()
	way.Heal()
	l.await(t, 50)
	l.end(t)
	c.judge(t, soon)
}

// lastPushIsLost: the last push of a conversation is lost and nobody writes
// again. Nothing shows the hole, and yet the receiver is right within the idle
// interval.
func lastPushIsLost(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	var dropped atomic.Int64
	var dropping atomic.Bool
	phone := ada.connect(t, "phone", deviceOptions{})
	deaf := ben.connect(t, "phone", deviceOptions{gateway: 1, idle: idle, drop: func(p *realtimev1.Push) bool {
		if p.GetEntry() == nil || !dropping.Load() {
			return false
		}
		dropped.Add(1)
		return true
	}})
	talk := ada.talkTo(t, ben)
	deaf.awaitHead(t, talk, phone.say(t, talk, "can you hear me?").GetSeq(), soon)
	dropping.Store(true)
	began := time.Now()
	last := phone.say(t, talk, "and now?")
	deaf.awaitHead(t, talk, last.GetSeq(), idle+soon)
	require.Positive(t, dropped.Load(), "the push was lost")
	t.Logf("repaired %s after the send, idle interval %s", time.Since(began).Round(time.Millisecond), idle)
	require.Equal(t, ben.readLog(t, 0, talk), deaf.entries(talk))
}

// pushesAreLost: every third push is lost while people talk; holes are filled.
func pushesAreLost(t *testing.T, sys *system.System) {
	var n atomic.Int64
	c := gather(t, sys, 2, deviceOptions{idle: idle, drop: func(*realtimev1.Push) bool { return n.Add(1)%3 == 0 }})
	l := c.talk(t)
	l.await(t, 150)
	l.end(t)
	c.judge(t, idle+soon)
}
