package client

import (
	"context"
	"slices"

	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	realtimev1 "github.com/parleychat/parley/proto/gen/parley/realtime/v1"
)

// Watch says whose presence the device shows from now on: these and nobody else.
// It is told to the server as soon as there is a connection, and after each
// reconnect; OnPresence then gets everybody.
func (d *Device) Watch(users ...string) {
	d.mu.Lock()
	d.watched = slices.Clone(users)
	d.mu.Unlock()
	d.demandWatch()
}

func (d *Device) demandWatch() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rewatch = true
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// settleWatches tells the server whom to watch, if that is due, and gives out what
// is known. It returns whether somebody has to be asked for again.
func (d *Device) settleWatches(ctx context.Context, conn *Conn) (again bool) {
	d.mu.Lock()
	watched, due := d.watched, d.rewatch
	d.rewatch = false
	d.mu.Unlock()
	var answer []*realtimev1.Presence
	if due {
		bounded, cancel := context.WithTimeout(ctx, repairTimeout)
		res, err := conn.Watch(bounded, &realtimev1.Watch{UserIds: watched, Replace: true})
		cancel()
		// An error leaves the list as it was, or there is no connection any more.
		again = err != nil
		answer = res.GetPresences()
	}
	d.mu.Lock()
	pushed := d.seen
	d.seen = nil
	d.mu.Unlock()
	// What was pushed before the answer is in it, or is older; what was pushed after
	// it is newer: versions tell.
	for _, p := range slices.Concat(answer, pushed) {
		again = again || p.GetState() == realtimev1.PresenceState_PRESENCE_STATE_UNSPECIFIED
		if d.cfg.OnPresence != nil && d.newer(p) {
			d.cfg.OnPresence(p)
		}
	}
	if due {
		d.forgetUnwatched(watched)
	}
	return again
}

// newer says whether this is to be shown: not what is older than what was shown.
// The same again is shown: it may have been unknown in between.
func (d *Device) newer(p *realtimev1.Presence) bool {
	if p.GetState() == realtimev1.PresenceState_PRESENCE_STATE_UNSPECIFIED {
		return true
	}
	if shown, known := d.shown[p.GetUserId()]; known && p.GetVersion() < shown {
		return false
	}
	d.shown[p.GetUserId()] = p.GetVersion()
	return true
}

func (d *Device) forgetUnwatched(watched []string) {
	for user := range d.shown {
		if !slices.Contains(watched, user) {
			delete(d.shown, user)
		}
	}
}

// SetTyping tells the others of a conversation that the person is writing, or has
// stopped. It is tried once: it is out of date in a moment.
func (d *Device) SetTyping(ctx context.Context, conversation string, typing bool) error {
	conn, err := d.Connected(ctx)
	if err != nil {
		return err
	}
	return call(ctx, conn, messagingv1connect.MessagingServiceSetTypingProcedure,
		&messagingv1.SetTypingRequest{ConversationId: conversation, Typing: typing}, &messagingv1.SetTypingResponse{})
}
