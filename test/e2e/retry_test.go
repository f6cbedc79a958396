package e2e_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/parleychat/parley/pkg/history"
	"github.com/parleychat/parley/pkg/rpc"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/test/e2e/system"
)

// retryIsRecognised: the same message under one client id is answered as before,
// another one is refused, and the log holds it once.
func retryIsRecognised(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	phone := ada.connect(t, "phone", deviceOptions{})
	talk := ada.talkTo(t, ben)
	req := &messagingv1.SendMessageRequest{ConversationId: talk, ClientMessageId: newID(t), Text: "once"}
	first := send(t, phone, req)
	for gateway := range 2 {
		requireRecognised(t, ada, phone, gateway, req, first)
	}
	require.Len(t, ada.readLog(t, 0, talk), 2)
}

// requireRecognised retries a message over the socket and over HTTP, with the
// same and with another content.
func requireRecognised(t *testing.T, p *person, d *device, gateway int, req *messagingv1.SendMessageRequest, first *messagingv1.SendMessageResponse) {
	t.Helper()
	again := send(t, d, req)
	require.True(t, proto.Equal(first, again), "the first answer again: %s, not %s", first, again)
	plain, err := p.messaging(gateway).SendMessage(t.Context(), req)
	require.NoError(t, err)
	require.True(t, proto.Equal(first, plain), "the first answer again: %s, not %s", first, plain)

	other := proto.CloneOf(req)
	other.Text = "something else"
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, overSocket := d.Send(ctx, other, nil)
	_, overHTTP := p.messaging(gateway).SendMessage(ctx, other)
	for _, err := range []error{overSocket, overHTTP} {
		require.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(err), "%v", err)
		require.Equal(t, errorv1.Reason_REASON_CLIENT_MESSAGE_ID_REUSED, rpc.ReasonOf(err))
	}
}

func send(t *testing.T, d *device, req *messagingv1.SendMessageRequest) *messagingv1.SendMessageResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	res, err := d.Send(ctx, req, nil)
	require.NoError(t, err, "send")
	return res
}

// toMidnight is how long it takes from now to the next change of the month, when
// the log goes on in another partition.
func toMidnight() time.Duration {
	now := time.Now().UTC()
	return time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC).Sub(now)
}

// margin keeps a story on its side of midnight, however slow the machine is.
const margin = 20 * time.Minute

// beforeMidnight moves the clocks to the last minutes of the month.
func beforeMidnight() system.Options { return system.Options{ClockOffset: toMidnight() - margin} }

// secondStartAfterMidnight: everything is stopped in order and started again in
// the next month. People log in, find what they wrote, a retry from before is
// recognised, and the conversation goes on in the next partition.
func secondStartAfterMidnight(t *testing.T, sys *system.System) {
	ada, ben := register(t, sys, 0), register(t, sys, 1)
	phone := ada.connect(t, "phone", deviceOptions{})
	reader := ben.connect(t, "phone", deviceOptions{gateway: 1})
	talk := ada.talkTo(t, ben)
	req := &messagingv1.SendMessageRequest{ConversationId: talk, ClientMessageId: newID(t), Text: "before midnight"}
	first := send(t, phone, req)
	reader.awaitHead(t, talk, first.GetSeq(), soon)
	before := ada.readLog(t, 0, talk)

	sys.Restart(toMidnight() + margin)
	require.Equal(t, before, ada.logIn(t).readLog(t, 0, talk), "a second start finds the data")

	// The old tokens have expired by the moved clocks: both log in again.
	ada, ben = ada.logIn(t), ben.logIn(t)
	tablet := ada.connect(t, "tablet", deviceOptions{})
	screen := ben.connect(t, "screen", deviceOptions{gateway: 1})
	requireRecognised(t, ada, tablet, 1, req, first)
	next := tablet.say(t, talk, "after midnight")
	require.Equal(t, first.GetSeq()+1, next.GetSeq())
	require.NotEqual(t, first.GetCreatedAt().AsTime().Month(), next.GetCreatedAt().AsTime().Month())
	for _, d := range []*device{tablet, screen} {
		d.awaitHead(t, talk, next.GetSeq(), soon)
		require.Equal(t, ben.readLog(t, 1, talk), d.entries(talk))
	}
	require.Equal(t, history.Hash("before midnight"), screen.entries(talk)[1].Content)
}
